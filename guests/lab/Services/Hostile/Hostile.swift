import LabC

/// Plays broken and malicious drivers: `hostile=NAME`, `hostile=all` (every case, in an order that `seed=` fixes) or
/// `hostile=fuzz` (`seconds=`, `seed=`). After each case it prints `hostile: NAME done` with the device's status, resets
/// the device, makes one honest request, and prints `hostile: recovered`. That it prints shows that the hypervisor lives.
enum Hostile {
  struct Case: Sendable {
    let name: StaticString
    /// 0: any device will do.
    let device: UInt32
    let run: @convention(c) () -> Void

    init(_ name: StaticString, _ device: UInt32 = 0, run: @escaping @convention(c) () -> Void) {
      self.name = name
      self.device = device
      self.run = run
    }
  }

  nonisolated(unsafe) static var random = Random(seed: 1)

  static func run() {
    guard let name = CommandLine.value("hostile") else {
      Console.line("hostile: no hostile= option")
      return
    }
    let seed = CommandLine.number("seed") ?? 1
    random = Random(seed: seed)
    if name.equals("all") {
      runAll(seed)
    } else if name.equals("fuzz") {
      runFuzz(seed)
    } else {
      runNamed(name)
    }
  }

  private static func runNamed(_ name: Bytes) {
    for i in 0..<cases.count where name.equals(cases[i].name) {
      run(cases[i])
      return
    }
    if name.equals("triple-fault") { Machine.tripleFault() }
    if name.equals("halt") { Ring0.call(.haltForever) }
    Console.line("hostile: unknown case; there are:")
    for i in 0..<cases.count { Console.line(cases[i].name) }
  }

  private static func runAll(_ seed: UInt64) {
    var order: InlineArray<128, UInt8> = .init(repeating: 0)
    for i in 0..<cases.count { order[i] = UInt8(i) }
    for i in stride(from: cases.count - 1, to: 0, by: -1) {
      let j = Int(random.next(below: UInt64(i + 1)))
      (order[i], order[j]) = (order[j], order[i])
    }
    var failed = 0
    for i in 0..<cases.count where !run(cases[Int(order[i])]) { failed += 1 }
    Console.line {
      $0.text("hostile: all done seed=")
      $0.decimal(seed)
      $0.text(" cases=")
      $0.decimal(UInt64(cases.count))
      $0.text(" not_recovered=")
      $0.decimal(UInt64(failed))
    }
  }

  private static func runFuzz(_ seed: UInt64) {
    let end = Clock.now + CommandLine.number("seconds", default: 5) * 1_000_000_000
    let wanted: InlineArray<3, UInt32> = [DeviceID.block, DeviceID.network, DeviceID.entropy]
    var rounds: UInt64 = 0
    repeat {
      guard Victim.choose(wanted[Int(rounds % 3)]) || Victim.choose(nil) else { break }
      Fuzz.round()
      rounds += 1
    } while Clock.now < end
    Console.line {
      $0.text("hostile: fuzz done seed=")
      $0.decimal(seed)
      $0.text(" rounds=")
      $0.decimal(rounds)
    }
    for i in 0..<3 where Victim.choose(wanted[i]) { _ = recover() }
  }

  @discardableResult
  private static func run(_ test: Case) -> Bool {
    guard Victim.choose(test.device == 0 ? nil : test.device) else {
      Console.line {
        $0.text("hostile: ")
        $0.text(test.name)
        $0.text(" skipped, no such device")
      }
      return true
    }
    Victim.bringUp()
    wrong = 0
    test.run()
    let status = Victim.transport.status
    Console.line {
      $0.text("hostile: ")
      $0.text(test.name)
      $0.text(" done status=")
      $0.hex(UInt64(status))
      if status & DeviceStatus.needsReset != 0 { $0.text(" needs-reset") }
      if wrong > 0 {
        $0.text(" wrong=")
        $0.decimal(wrong)
      }
    }
    return recover()
  }

  private static func recover() -> Bool {
    let good = Victim.bringUp() && Victim.works()
    Console.line(good ? "hostile: recovered" : "hostile: NOT recovered")
    return good
  }

  nonisolated(unsafe) private static var wrong: UInt64 = 0

  /// For what a sound device does whatever it is asked: the first thing that is wrong in a case is named.
  static func expect(_ good: Bool, _ what: StaticString) {
    if good { return }
    wrong += 1
    guard wrong == 1 else { return }
    Console.line {
      $0.text("hostile: WRONG ")
      $0.text(what)
    }
  }
}
