import LabC

/// `burn=seconds:5[,inside:N][,outside:N][,spare:1]`: every CPU takes one spinlock again and again, works `inside` turns with it and
/// `outside` turns without. Prints for each CPU its operations and the time it spun; with fewer host CPUs than guest
/// CPUs the lock's holder gets preempted and the others spin. Where these counts lie is printed at the start, for who wants to
/// read them meanwhile, from outside.
enum Burn {
  private struct Shared {
    var lock: UInt32
    var stop: UInt32
    var protected: UInt64
  }

  /// A cache line for each CPU.
  private struct Result {
    var operations: UInt64
    var spinTicks: UInt64
    var longestSpin: UInt64
    var padding: InlineArray<5, UInt64>
  }

  nonisolated(unsafe) private static var shared = UnsafeMutablePointer<Shared>.unset
  nonisolated(unsafe) private static var results = UnsafeMutablePointer<Result>.unset
  nonisolated(unsafe) private static var inside = 50
  nonisolated(unsafe) private static var outside = 500
  /// CPU 0 has other things to do.
  nonisolated(unsafe) private static var sparesFirst = false
  nonisolated(unsafe) private static var begin: UInt64 = 0
  nonisolated(unsafe) private static var end: UInt64 = 0
  nonisolated(unsafe) private(set) static var isActive = false

  static func start() {
    let option = CommandLine.value("burn") ?? Bytes(start: emptyBytes, count: 0)
    let seconds = CommandLine.part(option, "seconds") ?? 5
    inside = Int(min(CommandLine.part(option, "inside") ?? 50, 1_000_000))
    outside = Int(min(CommandLine.part(option, "outside") ?? 500, 1_000_000))
    sparesFirst = CommandLine.part(option, "spare") == 1
    shared = Arena.takeZeroed(Shared.self, count: 1)
    results = Arena.takeZeroed(Result.self, count: Processors.limit)
    Processors.startAll()
    Console.line {
      $0.text("burn: results at ")
      $0.decimal(UInt64(UInt(bitPattern: results)))
      $0.text(" stride=")
      $0.decimal(UInt64(MemoryLayout<Result>.stride))
      $0.text(" cpus=")
      $0.decimal(UInt64(Processors.started))
      $0.text(" khz=")
      $0.decimal(Clock.kiloHertz)
    }
    begin = Clock.now
    end = begin + seconds * 1_000_000_000
    for cpu in 1..<max(Processors.started, 1) {
      Processors.run(on: cpu, { Burn.work(Int($0)) }, UInt64(cpu))
    }
    isActive = true
  }

  /// CPU 0 burns in slices, so that the network lives on.
  static func poll() -> Bool {
    guard isActive else { return false }
    if sparesFirst, Clock.now < end { return false }
    let slice = Clock.now + 2_000_000
    while Clock.now < min(slice, end) { for _ in 0..<16 { operation(0) } }
    if Clock.now >= end { finish() }
    return true
  }

  private static func work(_ cpu: Int) {
    while load32(stopFlag) == 0 {
      if !ActiveCPUs.isActive(UInt32(cpu)) { ActiveCPUs.rest(UInt32(cpu), until: stopFlag) }
      for _ in 0..<16 { operation(cpu) }
    }
  }

  private static var stopFlag: UnsafeMutableRawPointer { UnsafeMutableRawPointer(shared) + 4 }

  private static func operation(_ cpu: Int) {
    let before = cpu_tsc()
    if exchange32(shared, 1) != 0 {
      repeat {
        while load32(shared) != 0 { cpu_pause() }
      } while exchange32(shared, 1) != 0
      let spun = cpu_tsc() - before
      results[cpu].spinTicks += spun
      results[cpu].longestSpin = max(results[cpu].longestSpin, spun)
    }
    shared.pointee.protected = churn(shared.pointee.protected &+ 1, inside)
    store32(shared, 0)
    results[cpu].operations += churn(results[cpu].operations, outside) == 0 ? 2 : 1
  }

  @inline(never)
  private static func churn(_ seed: UInt64, _ turns: Int) -> UInt64 {
    var x = seed
    for _ in 0..<turns { x = (x ^ (x >> 27)) &* 0x2545_f491_4f6c_dd1d &+ 1 }
    return x
  }

  private static func finish() {
    store32(stopFlag, 1)
    for cpu in 1..<max(Processors.started, 1) { Processors.wake(cpu) }
    isActive = false
    let milliseconds = (Clock.now - begin) / 1_000_000
    var operations: UInt64 = 0
    var spinTicks: UInt64 = 0
    for cpu in 0..<Int(Processors.started) {
      if cpu > 0 { while !Processors.isDone(UInt32(cpu)) { cpu_pause() } }
      operations += results[cpu].operations
      spinTicks += results[cpu].spinTicks
      Console.line {
        $0.text("burn: cpu=")
        $0.decimal(UInt64(cpu))
        $0.text(" ops=")
        $0.decimal(results[cpu].operations)
        $0.text(" spin_ms=")
        $0.decimal(results[cpu].spinTicks / max(Clock.kiloHertz, 1))
        $0.text(" longest_spin_us=")
        $0.decimal(results[cpu].longestSpin * 1000 / max(Clock.kiloHertz, 1))
      }
    }
    Console.line {
      $0.text("burn: cpus=")
      $0.decimal(UInt64(Processors.started))
      $0.text(" ms=")
      $0.decimal(milliseconds)
      $0.text(" ops=")
      $0.decimal(operations)
      $0.text(" ops_per_s=")
      $0.decimal(operations * 1000 / max(milliseconds, 1))
      $0.text(" spin_ms=")
      $0.decimal(spinTicks / max(Clock.kiloHertz, 1))
    }
  }
}
