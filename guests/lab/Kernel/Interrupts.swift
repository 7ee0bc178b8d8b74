import LabC

/// IDT, local APIC and I/O APIC. An interrupt only notes that something happened (boot/stubs.S); who it was for is found
/// by looking at the rings, so all devices share one stub.
enum Interrupts {
  static let deviceVector: UInt32 = 0x30  // + IRQ number
  static let timerVector: UInt32 = 0xf0
  static let wakeVector: UInt32 = 0xf1
  static let spuriousVector: UInt32 = 0xff

  nonisolated(unsafe) private(set) static var hasX2APIC = false
  nonisolated(unsafe) private static var hasDeadlineTimer = false
  nonisolated(unsafe) private static var localAPIC: UInt64 = 0xfee0_0000
  nonisolated(unsafe) static var ioAPIC: UInt64 = 0xfec0_0000

  static func setUp() {
    for vector in UInt32(0)..<32 { setGate(vector, exception_stub_address(vector)) }
    // From here on there are ring-0 calls.
    let features = Ring0.cpuid(1).c
    hasX2APIC = features & 1 << 21 != 0
    hasDeadlineTimer = features & 1 << 24 != 0
    let common = hasX2APIC ? interrupt_x2apic_address() : interrupt_xapic_address()
    for vector in UInt32(32)..<256 { setGate(vector, common) }
    setGate(spuriousVector, interrupt_spurious_address())
    // A legacy PIC may sit on the same lines: silence it.
    Ring0.out8(0xa1, 0xff)
    Ring0.out8(0x21, 0xff)
    setUpLocal()
  }

  /// The local APIC of the calling CPU.
  static func setUpLocal() {
    let base = Ring0.readMSR(0x1b)
    localAPIC = base & 0xf_ffff_f000
    if hasX2APIC {
      Ring0.writeMSR(0x1b, base | 0x800)  // x2APIC can only be entered from xAPIC mode
      Ring0.writeMSR(0x1b, base | 0xc00)
    } else {
      Ring0.writeMSR(0x1b, base | 0x800)
    }
    write(0xf0, 0x100 | spuriousVector)
    write(0x350, 0x10000)  // LINT0, where a PIC's interrupts would come in: masked
    write(0x3e0, 0xb)  // divide by one
    write(0x320, timerMode)
    Ring0.call(.interrupts, 1)
  }

  private static var timerMode: UInt32 { hasDeadlineTimer ? timerVector | 2 << 17 : timerVector }

  /// TSC ticks a millisecond, by 10 ms of the local APIC's timer: for emulators that say nothing about the TSC.
  static func measureTSC() -> UInt64 {
    write(0x320, 0x10000 | timerVector)  // one-shot, masked
    write(0x380, UInt32.max)
    let first = read(0x390)
    let start = cpu_tsc()
    var nanoseconds: UInt32 = 0  // of the timer: 1 GHz, as below
    while nanoseconds < 10_000_000 { nanoseconds = first &- read(0x390) }
    let ticks = cpu_tsc() - start
    write(0x380, 0)
    write(0x320, timerMode)
    return max(ticks * 1_000_000 / UInt64(nanoseconds), 1)
  }

  static var localID: UInt32 { hasX2APIC ? read(0x20) : read(0x20) >> 24 }

  /// Local APIC register by its xAPIC offset.
  static func write(_ register: UInt64, _ value: UInt32) {
    if hasX2APIC {
      Ring0.writeMSR(UInt32(0x800 + register >> 4), UInt64(value))
    } else {
      mmio_write32(localAPIC + register, value)
    }
  }

  static func read(_ register: UInt64) -> UInt32 {
    hasX2APIC
      ? UInt32(truncatingIfNeeded: Ring0.readMSR(UInt32(0x800 + register >> 4)))
      : mmio_read32(localAPIC + register)
  }

  static func send(to target: UInt32, _ command: UInt32) {
    if hasX2APIC {
      Ring0.writeMSR(0x830, UInt64(target) << 32 | UInt64(command))
    } else {
      mmio_write32(localAPIC + 0x310, target << 24)
      mmio_write32(localAPIC + 0x300, command)
    }
  }

  static func wake(_ apicID: UInt32) { send(to: apicID, 0x4000 | wakeVector) }

  /// I/O APIC pin = IRQ: edge-triggered, active high, to the boot CPU.
  static func route(irq: UInt32) {
    writeIO(0x10 + 2 * irq + 1, localID << 24)
    writeIO(0x10 + 2 * irq, deviceVector + irq)
  }

  private static func writeIO(_ register: UInt32, _ value: UInt32) {
    mmio_write32(ioAPIC, register)
    mmio_write32(ioAPIC + 0x10, value)
  }

  private static func setGate(_ vector: UInt32, _ handler: UInt64) {
    let gate = physical(idt_address() + UInt64(vector) * 16)
    gate.storeBytes(
      of: handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48, as: UInt64.self)
    gate.storeBytes(of: handler >> 32, toByteOffset: 8, as: UInt64.self)
  }

  // MARK: Waiting

  /// Clears "an interrupt came" of CPU `cpu`; look at the rings after this and before ``idle(cpu:nanoseconds:)``.
  static func prepareToIdle(cpu: UInt32) {
    _ = exchange32(physical(ring0_page_address(cpu)), 0)
  }

  /// Sleeps until an interrupt, or at most `nanoseconds` where that is not nil.
  static func idle(nanoseconds: UInt64?) {
    guard let nanoseconds else {
      Ring0.call(.idle, 0)
      return
    }
    if hasDeadlineTimer {
      Ring0.call(.idle, Clock.deadline(in: nanoseconds))
    } else {
      write(0x380, UInt32(clamping: max(nanoseconds, 1)))  // the APIC bus of KVM and QEMU runs at 1 GHz
      Ring0.call(.idle, 0)
    }
  }

  static func count(cpu: UInt32) -> UInt64 { load64(physical(ring0_page_address(cpu) + 8)) }
}
