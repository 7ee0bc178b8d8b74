import LabC

/// The CPUs: found in the MP table, started by INIT and SIPI.
enum Processors {
  static let limit = 16
  nonisolated(unsafe) private(set) static var count: UInt32 = 1
  nonisolated(unsafe) private(set) static var started: UInt32 = 1
  /// APIC ids by CPU number; CPU 0 is the one that booted.
  nonisolated(unsafe) private(set) static var apicIDs: InlineArray<16, UInt32> = .init(repeating: 0)
  nonisolated(unsafe) private static var alive: UnsafeMutablePointer<UInt32>?

  private static let trampoline: UInt64 = 0x8000

  /// Intel MultiProcessor Specification 1.4: floating pointer, then the configuration table.
  static func readMPTable() {
    apicIDs[0] = Interrupts.localID
    guard let table = findTable(), table.loadUnaligned(as: UInt32.self) == 0x504d_4350 else { return }  // "PCMP"
    let length = Int(table.loadUnaligned(fromByteOffset: 4, as: UInt16.self))
    var offset = 44
    while offset < length {  // not by the entry count, which some firmware leaves 0
      let type = table.load(fromByteOffset: offset, as: UInt8.self)
      if type == 0 {
        let id = UInt32(table.load(fromByteOffset: offset + 1, as: UInt8.self))
        let enabled = table.load(fromByteOffset: offset + 3, as: UInt8.self) & 1 != 0
        if enabled, id != apicIDs[0], count < UInt32(limit) {
          apicIDs[Int(count)] = id
          count += 1
        }
      } else if type == 2 {
        Interrupts.ioAPIC = UInt64(table.loadUnaligned(fromByteOffset: offset + 4, as: UInt32.self))
      }
      offset += type == 0 ? 20 : 8
    }
  }

  private static func findTable() -> UnsafeMutableRawPointer? {
    findTable(0x9fc00, 0x400) ?? findTable(0xf0000, 0x10000) ?? findTable(0x9f000, 0x1000)
  }

  private static func findTable(_ start: UInt64, _ size: UInt64) -> UnsafeMutableRawPointer? {
    var at = start
    while at < start + size {
      let pointer = physical(at)
      if pointer.load(as: UInt32.self) == 0x5f50_4d5f {  // "_MP_"
        let table = pointer.load(fromByteOffset: 4, as: UInt32.self)
        if table != 0 { return physical(UInt64(table)) }
      }
      at += 16
    }
    return nil
  }

  /// Starts all other CPUs, one after another; they wait in HLT for ``run(on:_:_:)``.
  static func startAll() {
    guard started == 1, count > 1 else { return }
    let flags = Arena.takeZeroed(UInt32.self, count: limit)
    alive = flags
    let mailboxes = Arena.takeZeroed(UInt64.self, count: limit * 2)
    jobMailboxes = mailboxes
    _ = memcpy(physical(trampoline), physical(trampoline_address()), Int(trampoline_size()))
    for cpu in 1..<count {
      let stack = Arena.take(65536, alignment: 4096)
      set_user_stack(cpu, address(stack) + 65536)
      set_starting_cpu(cpu)
      let id = apicIDs[Int(cpu)]
      Interrupts.send(to: id, 0xc500)  // INIT, level asserted
      Interrupts.send(to: id, 0x8500)  // and deasserted
      pause(microseconds: 200)
      Interrupts.send(to: id, 0x4600 | UInt32(trampoline >> 12))
      if !waitUntilAlive(cpu, milliseconds: 20) {
        Interrupts.send(to: id, 0x4600 | UInt32(trampoline >> 12))
        guard waitUntilAlive(cpu, milliseconds: 2000) else {
          Console.line {
            $0.text("lab: cpu ")
            $0.decimal(UInt64(cpu))
            $0.text(" does not start")
          }
          return
        }
      }
      started = cpu + 1
    }
  }

  /// For each CPU what it is to run: function (0: nothing) and argument.
  nonisolated(unsafe) private static var jobMailboxes: UnsafeMutablePointer<UInt64>?

  /// Runs `job(argument)` on a started secondary CPU.
  static func run(on cpu: UInt32, _ job: @convention(c) (UInt64) -> Void, _ argument: UInt64) {
    guard let jobMailboxes, cpu > 0, cpu < started else { return }
    jobMailboxes[Int(cpu) * 2 + 1] = argument
    store64(jobMailboxes + Int(cpu) * 2, UInt64(UInt(bitPattern: unsafeBitCast(job, to: Int.self))))
    Interrupts.wake(apicIDs[Int(cpu)])
  }

  static func wake(_ cpu: UInt32) { Interrupts.wake(apicIDs[Int(cpu)]) }

  /// Whether the CPU has finished the last job it was given.
  static func isDone(_ cpu: UInt32) -> Bool {
    guard let jobMailboxes else { return true }
    return load64(jobMailboxes + Int(cpu) * 2) == 0
  }

  fileprivate static func serve(_ cpu: UInt32) -> Never {
    Interrupts.setUpLocal()
    guard let alive, let jobMailboxes else { Machine.crashed() }
    store32(alive + Int(cpu), 1)
    let mailbox = jobMailboxes + Int(cpu) * 2
    while true {
      Interrupts.prepareToIdle(cpu: cpu)
      let job = load64(mailbox)
      if job == 0 {
        Interrupts.idle(nanoseconds: nil)
        continue
      }
      unsafeBitCast(Int(job), to: (@convention(c) (UInt64) -> Void).self)(mailbox[1])
      store64(mailbox, 0)
      Interrupts.wake(apicIDs[0])
    }
  }

  private static func waitUntilAlive(_ cpu: UInt32, milliseconds: UInt64) -> Bool {
    guard let alive else { return false }
    let limit = Clock.now + milliseconds * 1_000_000
    while load32(alive + Int(cpu)) == 0 {
      if Clock.now > limit { return false }
      cpu_pause()
    }
    return true
  }

  static func pause(microseconds: UInt64) {
    let end = Clock.now + microseconds * 1000
    while Clock.now < end { cpu_pause() }
  }
}

@c(lab_secondary_main)
func secondaryMain(_ cpu: UInt32) -> Never { Processors.serve(cpu) }
