import LabC

/// The calls CPL3 can make of ring 0 (boot/stubs.S, call_table; the order is the contract).
enum Ring0Call: UInt64 {
  case console, out8, out16, out32, in8, in16, in32, idle, writeMSR, readMSR, cpuid, interrupts, out8Loop, readTSC
  case tripleFault, haltForever, outString, inString
}

enum Ring0 {
  @discardableResult
  @inline(__always)
  static func call(_ number: Ring0Call, _ a: UInt64 = 0, _ b: UInt64 = 0, _ c: UInt64 = 0) -> UInt64 {
    ring0_call(number.rawValue, a, b, c)
  }

  static func out8(_ port: UInt16, _ value: UInt8) { call(.out8, UInt64(port), UInt64(value)) }
  static func out16(_ port: UInt16, _ value: UInt16) { call(.out16, UInt64(port), UInt64(value)) }
  static func writeMSR(_ number: UInt32, _ value: UInt64) { call(.writeMSR, UInt64(number), value) }
  static func readMSR(_ number: UInt32) -> UInt64 { call(.readMSR, UInt64(number)) }

  /// CPUID as the hypervisor defines it: at CPL3 some hosts let the processor answer.
  static func cpuid(_ leaf: UInt32, _ subleaf: UInt32 = 0) -> (a: UInt32, b: UInt32, c: UInt32, d: UInt32) {
    var result: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
    withUnsafeMutablePointer(to: &result) {
      _ = call(.cpuid, UInt64(leaf), UInt64(subleaf), UInt64(UInt(bitPattern: $0)))
    }
    return (result.0, result.1, result.2, result.3)
  }
}

/// How a run ends: the ports of the platform.
enum Machine {
  static func powerOff() -> Never {
    Ring0.out16(0x604, 0x2000)
    reset()  // where port 0x604 is not decoded, a reset is what ends the run
  }

  static func reset() -> Never {
    Ring0.out8(0x64, 0xfe)
    Ring0.call(.tripleFault)
    while true {}
  }

  static func crashed() -> Never {
    Ring0.out8(0x505, 1)
    reset()  // where port 0x505 is not decoded
  }

  static func tripleFault() -> Never {
    Ring0.call(.tripleFault)
    while true {}
  }
}
