import LabC

/// Ports and addresses nobody answers, and floods of output and requests.
enum PlatformCases {
  /// Ports that do nothing on a PC of this kind: 0x700-0xcf7 and 0xd00-0xffff.
  private static func port() -> UInt64 { Hostile.random.next(below: 2) == 0 ? 0x700 : 0xd00 }

  static func portAndMemoryStorm() {
    for _ in 0..<2000 {
      let port = port() + Hostile.random.next(below: 0x5f0)
      let value = Hostile.random.next()
      switch Hostile.random.next(below: 6) {
      case 0: Ring0.call(.out8, port, value)
      case 1: Ring0.call(.out16, port, value)
      case 2: Ring0.call(.out32, port, value)
      case 3: Hostile.expect(Ring0.call(.in8, port) == 0xff, "an unused port must read as ones")
      case 4: Ring0.call(.in16, port)
      default: Ring0.call(.in32, port)
      }
    }
    for _ in 0..<2000 {
      let address = 0xd000_0000 + Hostile.random.next(below: 0x0800_0000)
      switch Hostile.random.next(below: 8) {
      case 0: mmio_write8(address, 1)
      case 1: mmio_write16(address & ~1, 1)
      case 2: mmio_write32(address & ~3, 1)
      case 3: mmio_write64(address & ~7, 1)
      case 4: Hostile.expect(mmio_read8(address) == 0xff, "unused memory must read as ones")
      case 5: _ = mmio_read16(address)
      case 6: Hostile.expect(mmio_read32(address & ~3) == 0xffff_ffff, "unused memory must read as ones")
      default: _ = mmio_read64(address & ~7)
      }
    }
  }

  static func stringPort() {
    Ring0.call(.outString, 0x700, Victim.scratch, 256)
    Ring0.call(.inString, 0x700, Victim.scratch, 256)
    Ring0.call(.outString, 0x3f8, Victim.scratch, 0)
  }

  /// 64 KiB of output as fast as it goes, without asking whether the transmitter is empty.
  static func serialFlood() {
    var line: InlineArray<64, UInt8> = .init(repeating: 0x2e)
    line[63] = 0x0a
    withUnsafeMutablePointer(to: &line) {
      for _ in 0..<1024 { Ring0.call(.outString, 0x3f8, UInt64(UInt(bitPattern: $0)), 64) }
    }
  }

  /// All descriptors at once, again and again, each for much.
  static func entropyFlood() {
    for _ in 0..<100 {
      for i in 0..<Victim.size {
        Victim.descriptor(i, Victim.scratch, 65536, VirtqueueDescriptor.write)
        Victim.offer(i)
      }
      Victim.notify()
    }
    Victim.settle(from: Victim.usedIndex)
  }
}
