import LabC

/// Time in nanoseconds from the TSC, read at CPL3: by kvm-clock where the hypervisor offers it (which stays right when
/// the VM moves to another machine), else by a TSC frequency from CPUID or from `tsc_khz=`.
enum Clock {
  nonisolated(unsafe) private static var page: UnsafeMutableRawPointer?
  nonisolated(unsafe) private static var base: UInt64 = 0
  nonisolated(unsafe) private static var multiplier: UInt32 = 0
  nonisolated(unsafe) private static var shift: Int8 = 0
  nonisolated(unsafe) private(set) static var kiloHertz: UInt64 = 0
  nonisolated(unsafe) private(set) static var source: StaticString = "none"

  private static let systemTimeMSR: UInt32 = 0x4b56_4d01  // MSR_KVM_SYSTEM_TIME_NEW

  static func setUp() {
    base = cpu_tsc()
    if let given = CommandLine.number("tsc_khz"), given > 0 {
      use(kiloHertz: given, "command line")
    } else if !CommandLine.isOff("kvmclock"), useKVMClock() {
      source = "kvm-clock"
    } else if let found = frequencyFromCPUID() {
      use(kiloHertz: found, "cpuid")
    } else {
      use(kiloHertz: Interrupts.measureTSC(), "apic")
    }
  }

  private static func use(kiloHertz frequency: UInt64, _ name: StaticString) {
    kiloHertz = frequency
    source = name
    // multiplier/2^32 * 2^shift nanoseconds a tick
    shift = 0
    var scaled = (1_000_000 << 32) / frequency
    while scaled > UInt64(UInt32.max) {
      scaled >>= 1
      shift += 1
    }
    multiplier = UInt32(truncatingIfNeeded: scaled)
  }

  private static func useKVMClock() -> Bool {
    let id = Ring0.cpuid(0x4000_0000)
    guard id.b == 0x4b4d_564b, id.c == 0x564b_4d56, id.d == 0x4d,  // "KVMKVMKVM"
      Ring0.cpuid(0x4000_0001).a & 1 << 3 != 0
    else { return false }
    let shared = Arena.takeZeroed(64)
    Ring0.writeMSR(systemTimeMSR, address(shared) | 1)
    let scale = shared.load(fromByteOffset: 24, as: UInt32.self)
    guard scale != 0 else { return false }
    page = shared
    let exponent = shared.load(fromByteOffset: 28, as: Int8.self)
    let perTick = exponent >= 0 ? UInt64(scale) << UInt64(exponent) : UInt64(scale) >> UInt64(-exponent)
    kiloHertz = (1_000_000 << 32) / max(perTick, 1)
    return true
  }

  private static func frequencyFromCPUID() -> UInt64? {
    let id = Ring0.cpuid(0x4000_0000)
    if id.a >= 0x4000_0010, id.a < 0x4000_0100 {
      let leaf = Ring0.cpuid(0x4000_0010)
      if leaf.a > 100_000 { return UInt64(leaf.a) }
    }
    let highest = Ring0.cpuid(0).a
    if highest >= 0x15 {
      let leaf = Ring0.cpuid(0x15)
      if leaf.a != 0, leaf.b != 0, leaf.c != 0 {
        return UInt64(leaf.c) * UInt64(leaf.b) / UInt64(leaf.a) / 1000
      }
    }
    if highest >= 0x16 {
      let leaf = Ring0.cpuid(0x16)
      if leaf.a & 0xffff != 0 { return UInt64(leaf.a & 0xffff) * 1000 }
    }
    return nil
  }

  nonisolated(unsafe) private static var last: UInt64 = 0
  nonisolated(unsafe) private static var lost: UInt64 = 0

  /// Nanoseconds since start (or since the host's epoch of this VM). Goes on from where it was when the hypervisor's
  /// clock steps back, as it may when the VM goes on from an older state or elsewhere.
  static var now: UInt64 {
    var time = reading &+ lost
    if time < last {
      lost &+= last - time
      time = last
    }
    last = time
    return time
  }

  private static var reading: UInt64 {
    guard let page else { return scale(cpu_tsc() &- base, multiplier, shift) }
    while true {
      let version = load32(page)
      let since = page.load(fromByteOffset: 8, as: UInt64.self)
      let start = page.load(fromByteOffset: 16, as: UInt64.self)
      let multiplier = page.load(fromByteOffset: 24, as: UInt32.self)
      let shift = page.load(fromByteOffset: 28, as: Int8.self)
      let tsc = cpu_tsc()
      if version & 1 == 0, load32(page) == version {
        // The other side may have set its timestamp a little after our reading.
        return start &+ scale(tsc > since ? tsc - since : 0, multiplier, shift)
      }
    }
  }

  private static func scale(_ ticks: UInt64, _ multiplier: UInt32, _ shift: Int8) -> UInt64 {
    multiply_shift32(shift >= 0 ? ticks << UInt64(shift) : ticks >> UInt64(-shift), multiplier)
  }

  /// The TSC value `nanoseconds` (at most 10 s) from now.
  static func deadline(in nanoseconds: UInt64) -> UInt64 {
    cpu_tsc() &+ min(nanoseconds, 10_000_000_000) * kiloHertz / 1_000_000
  }
}

@c(sys_now)
func lwipMilliseconds() -> UInt32 { UInt32(truncatingIfNeeded: Clock.now / 1_000_000) }
