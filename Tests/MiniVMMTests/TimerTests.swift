import CKVM
import Glibc
import GuestMemory
import Harness
import Synchronization
import Testing

@testable import MiniVMM

extension MachineTests {
  /// A guest's TSC-deadline timer that is running while the machine is saved.
  @Suite(
    .timeLimit(.minutes(Environment.patience)),
    .enabled(if: TimerGuest.isPossible, "KVM has no TSC-deadline timer here"))
  struct TimerTests {
    enum Target: CaseIterable { case newMachine, sameMachine }

    /// The clock stands still while the machine is away: the timer has as long to go as it had, is not lost, and fires once.
    @Test(arguments: Target.allCases)
    func runningTimer_firesOnceWhenItsTimeHasCome(target: Target) throws {
      let saved = try TimerGuest(delayMilliseconds: 400 * UInt64(Environment.patience))
      let state = try saved.saveWhileItRuns()
      let secondsLeft = saved.seconds(from: state.vcpus[0].tsc, to: try #require(state.vcpus[0].tscDeadline))
      // Away for longer than the timer has to go. Not a wait for anything: time passes.
      usleep(500_000 * UInt32(Environment.patience))

      let restored = target == .newMachine ? try TimerGuest(restoredFrom: saved) : saved
      let begin = ContinuousClock.now
      try restored.takeIn(state, clock: .continues)
      let deadline = try restored.hostDeadline
      if try TinyGuest.counterCanBeSet(try KVMSystem()) { #expect(deadline == state.vcpus[0].tscDeadline) }
      try restored.run()
      #expect(try waitUntil(seconds: 10) { try restored.fired > 0 }, "the timer is lost")
      let waited = begin.duration(to: .now) / .seconds(1)
      #expect(waited > secondsLeft * 0.99, "fired after \(waited) s with \(secondsLeft) s to go")
      let late = restored.seconds(from: deadline, to: try restored.firedAt)
      #expect(late >= 0 && late < 5, "fired \(late) s after the deadline by the guest's own counter")
      // A second interrupt would be there as soon as the first had ended.
      #expect(try staysTrue(for: 0.2) { try restored.fired == 1 }, "the timer fires twice")
      restored.machine.stop()
      saved.machine.stop()
    }

    /// The clock catches up, and the deadline passed meanwhile: the timer fires as the machine starts.
    @Test(arguments: Target.allCases)
    func timerDueWhileSaved_firesAtOnceAndOnce(target: Target) throws {
      let saved = try TimerGuest(delayMilliseconds: 10_000)
      var state = try saved.saveWhileItRuns()
      guard let realtime = state.vm.realtime else { return }
      // As if it had been saved twenty seconds ago; the timer had ten to go.
      state.vm.realtime = realtime - 20_000_000_000
      let restored = target == .newMachine ? try TimerGuest(restoredFrom: saved) : saved
      try restored.takeIn(state, clock: .catchesUp)
      let deadline = try restored.hostDeadline
      try restored.run()
      #expect(try waitUntil(seconds: 5) { try restored.fired > 0 }, "the timer is lost")
      let late = restored.seconds(from: deadline, to: try restored.firedAt)
      #expect(late > 9 && late < 40, "fired \(late) s after the deadline by the guest's own counter, not 10")
      #expect(try staysTrue(for: 0.2) { try restored.fired == 1 }, "the timer fires twice")
      restored.machine.stop()
      saved.machine.stop()
    }

    /// A secondary's machine is restored again and again: each time the counter stands where the saved one stood. KVM takes a write that
    /// is near to the last one for another vCPU's, and would add the time in between.
    @Test(.enabled(if: (try? TinyGuest.counterCanBeSet(KVMSystem())) == true, "KVM shows the host's counter here"))
    func counter_standsWhereItStood_afterEachRestore() throws {
      let guest = try TimerGuest(delayMilliseconds: 10_000)
      let state = try guest.saveWhileItRuns()
      for _ in 0..<3 {
        usleep(500_000)
        try guest.takeIn(state, clock: .continues)
        let counter = try #require(guest.machine.vcpus[0].msrs([VirtualCPU.tscRegister]).first).data
        let off = guest.seconds(from: state.vcpus[0].tsc, to: counter)
        #expect(off >= 0 && off < 0.4, "it is \(off) s off")
      }
      guest.machine.stop()
    }

    /// Where KVM shows guests the host's counter, the deadline moves with it.
    @Test func deadline_movesWithACounterThatIsOff() {
      #expect(VirtualCPU.deadline(1000, shiftedBy: 0) == 1000)
      #expect(VirtualCPU.deadline(1000, shiftedBy: -300) == 700)
      #expect(VirtualCPU.deadline(1000, shiftedBy: 300) == 1300)
      #expect(VirtualCPU.deadline(0, shiftedBy: 300) == 0, "no timer stays none")
      #expect(VirtualCPU.deadline(1, shiftedBy: -300) == 1, "one long due stays due, and is not switched off")
      #expect(VirtualCPU.deadline(.max, shiftedBy: 300) == .max)
    }
  }
}

/// A guest that arms the TSC-deadline timer once, halts, and counts what comes of it.
private final class TimerGuest {
  static var isPossible: Bool {
    guard let kvm = try? KVMSystem() else { return false }
    return kvm.capability(.tscDeadline) > 0
  }

  private static let (armedFlag, firedCount, deadlineAt, firedAtAt, delayAt): (UInt64, UInt64, UInt64, UInt64, UInt64) =
    (0x30_0000, 0x30_0004, 0x30_0010, 0x30_0018, 0x30_0020)
  private static let (gates, tableRegister, vector): (UInt64, UInt64, UInt64) = (0x31_0000, 0x31_0800, 0x40)

  /// 64-bit code in ring 0, entered with the low 4 GiB mapped one to one.
  private static let code: [UInt8] = [
    0xbc, 0x00, 0x00, 0x32, 0x00,  // mov esp, 0x320000
    0x0f, 0x01, 0x1c, 0x25, 0x00, 0x08, 0x31, 0x00,  // lidt [0x310800]
    0xbf, 0x00, 0x00, 0xe0, 0xfe,  // mov edi, 0xfee00000
    0xc7, 0x87, 0xf0, 0, 0, 0, 0xff, 0x01, 0, 0,  // mov dword [rdi + 0xf0], 0x1ff: APIC on
    0xc7, 0x87, 0x20, 3, 0, 0, 0x40, 0x00, 0x04, 0,  // mov dword [rdi + 0x320], 0x40040: TSC deadline, vector 0x40
    0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xc2,  // rdtsc; shl rdx, 32; or rdx, rax
    0x48, 0x03, 0x14, 0x25, 0x20, 0x00, 0x30, 0x00,  // add rdx, [0x300020]: the delay
    0x48, 0x89, 0x14, 0x25, 0x10, 0x00, 0x30, 0x00,  // mov [0x300010], rdx: the deadline
    0x89, 0xd0, 0x48, 0xc1, 0xea, 0x20,  // mov eax, edx; shr rdx, 32
    0xb9, 0xe0, 0x06, 0x00, 0x00, 0x0f, 0x30,  // mov ecx, 0x6e0; wrmsr: IA32_TSC_DEADLINE
    0xc7, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 1, 0, 0, 0,  // mov dword [0x300000], 1: armed
    0xfb, 0xf4, 0xeb, 0xfd,  // sti; again: hlt; jmp again
  ]
  private static let handler: [UInt8] = [
    0x0f, 0x31,  // rdtsc
    0x89, 0x04, 0x25, 0x18, 0x00, 0x30, 0x00,  // mov [0x300018], eax: when
    0x89, 0x14, 0x25, 0x1c, 0x00, 0x30, 0x00,  // mov [0x30001c], edx
    0xff, 0x04, 0x25, 0x04, 0x00, 0x30, 0x00,  // inc dword [0x300004]: how often
    0xc7, 0x87, 0xb0, 0, 0, 0, 0, 0, 0, 0,  // mov dword [rdi + 0xb0], 0: end of interrupt
    0x48, 0xcf,  // iretq
  ]

  let machine: Machine
  private let kilohertz: UInt32
  /// RAM as it was when the machine was saved.
  private var savedRAM: [UInt8] = []

  init(delayMilliseconds: UInt64) throws {
    machine = try makeMachine([], load: false)
    kilohertz = try machine.vcpus[0].tscFrequency()
    let file = MemoryFile(TestELF(code: Self.code + Self.handler, pvhEntry: nil).bytes)
    try machine.load(BootSource(kernel: file.descriptor))
    let memory = machine.memory
    let entry = UInt64(0x20_0000 + Self.code.count)
    // Interrupt gate, present, of the boot protocol's 64-bit code segment (Intel SDM vol. 3, 6.14.1).
    let gate = entry & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (entry >> 16) << 48
    try memory.store(gate, at: Self.gates + 16 * Self.vector)
    try memory.store(UInt16(16 * 256 - 1), at: Self.tableRegister)
    try memory.store(Self.gates, at: Self.tableRegister + 2)
    try memory.store(delayMilliseconds * UInt64(kilohertz), at: Self.delayAt)
  }

  /// A new machine with the other's RAM as it was saved.
  init(restoredFrom other: TimerGuest) throws {
    machine = try makeMachine([], load: false)
    kilohertz = try machine.vcpus[0].tscFrequency()
    savedRAM = other.savedRAM
  }

  /// Starts the guest, and saves it when it has armed its timer and waits.
  func saveWhileItRuns() throws -> MachineState {
    try machine.start()
    try #require(try waitUntil(seconds: 10) { try machine.memory.load(UInt32.self, at: Self.armedFlag) == 1 })
    machine.pause()
    // At once: on a slow host the deadline passes while RAM is copied.
    let state = try decoded()
    savedRAM = try machine.memory.bytes(at: 0, count: Int(machine.memory.size))
    let armed = try deadline
    try #require(state.vcpus[0].tscDeadline == armed && state.vcpus[0].tsc < armed, "the timer is not running")
    try #require(try fired == 0)
    return state
  }

  /// Puts RAM and state in place.
  func takeIn(_ state: MachineState, clock: ClockPolicy) throws {
    try machine.memory.write(savedRAM, at: 0)
    try machine.restore(state.encode(), clock: clock)
  }

  func run() throws {
    if machine.phase.withLock({ $0 == .ready }) { try machine.start() } else { machine.resume() }
  }

  /// IA32_TSC_DEADLINE as KVM has it now.
  var hostDeadline: UInt64 {
    get throws { try #require(machine.vcpus[0].msrs([VirtualCPU.tscDeadlineRegister]).first?.data) }
  }

  /// Seconds of the guest's counter from one value to another; negative backwards.
  func seconds(from: UInt64, to: UInt64) -> Double {
    Double(Int64(bitPattern: to &- from)) / Double(kilohertz) / 1000
  }

  private func decoded() throws -> MachineState {
    let shape = MachineState.Shape(cpus: 1, memorySize: machine.memory.size, devices: ["i8042", "rtc"])
    return try MachineState.decode(try machine.save(), for: shape, xsaveSize: machine.xsaveSize)
  }

  var fired: UInt32 { get throws { try machine.memory.load(UInt32.self, at: Self.firedCount) } }
  var deadline: UInt64 { get throws { try machine.memory.load(UInt64.self, at: Self.deadlineAt) } }
  /// The guest's time stamp counter when its handler ran last.
  var firedAt: UInt64 { get throws { try machine.memory.load(UInt64.self, at: Self.firedAtAt) } }
}
