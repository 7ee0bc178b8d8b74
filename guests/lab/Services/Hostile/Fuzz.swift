import LabC

/// Random abuse. Addresses a device might write to are scratch or outside RAM (see ``Victim``).
enum Fuzz {
  private static func below(_ bound: UInt64) -> UInt64 { Hostile.random.next(below: bound) }

  /// One life of the device: honest start or none, then a few dozen random acts.
  static func round() {
    if below(4) > 0 { Victim.bringUp() }
    for _ in 0..<below(60) {
      switch below(10) {
      case 0...2: register()
      case 3...5: descriptor()
      case 6: Victim.setAvailIndex(below(3) == 0 ? UInt16(truncatingIfNeeded: below(65536)) : Victim.availIndex &+ 1)
      case 7: Victim.avail.storeBytes(of: index(), toByteOffset: 4 + 2 * Int(below(256)), as: UInt16.self)
      case 8: header()
      default: Victim.notify(below(8) == 0 ? UInt32(truncatingIfNeeded: below(1 << 32)) : UInt32(below(3)))
      }
    }
    Victim.notify()
    if below(8) == 0 { Processors.pause(microseconds: 300) }
    if below(2) == 0 { Victim.transport.reset() }
  }

  private static func index() -> UInt16 {
    below(8) == 0 ? UInt16(truncatingIfNeeded: below(65536)) : UInt16(below(16))
  }

  /// Never the image, the stacks or page tables.
  private static func harmlessAddress() -> UInt64 {
    switch below(6) {
    case 0: Victim.endOfRAM + below(1 << 20)
    case 1: UInt64.max - below(1 << 16)
    case 2: below(1 << 16) << 44 | 1 << 40
    case 3: 0xc000_0000 + below(0x3f00_0000)
    default: Victim.scratch + below(Victim.scratchSize)
    }
  }

  private static func length() -> UInt32 {
    switch below(6) {
    case 0: UInt32(below(4))
    case 1: UInt32(truncatingIfNeeded: below(1 << 32))
    case 2: 0xffff_ffff
    case 3: 16
    default: UInt32(below(64) * 512)
    }
  }

  private static func descriptor() {
    var address = harmlessAddress()
    var length = length()
    // A long buffer in scratch would end in what lies behind it.
    let isScratch = address >= Victim.scratch && address < Victim.scratch + Victim.scratchSize
    if isScratch, UInt64(length) > Victim.scratch + Victim.scratchSize - address { length = 512 }
    let isLow = address < Victim.endOfRAM
    if isLow, !isScratch { address = Victim.scratch }
    Victim.descriptor(UInt16(below(16)), address, length, UInt16(below(16)), next: index())
  }

  private static func header() {
    physical(Victim.scratch + 512 * below(8)).storeBytes(
      of: BlockRequestHeader(
        type: UInt32(below(16)), sector: below(2) == 0 ? Hostile.random.next() : below(Victim.sectors + 2)),
      as: BlockRequestHeader.self)
  }

  private static func register() {
    let device = Victim.transport
    switch below(8) {
    case 0: device.write(MMIORegister.status, UInt32(below(256)))
    case 1: device.write(MMIORegister.queueSelect, UInt32(below(4)))
    case 2: device.write(MMIORegister.queueSize, UInt32(below(2) == 0 ? 1 << below(10) : below(70000)))
    case 3: device.write(MMIORegister.queueReady, UInt32(below(3)))
    case 4:
      let registers: InlineArray<3, UInt64> = [
        MMIORegister.queueDescriptorLow, MMIORegister.queueDriverLow, MMIORegister.queueDeviceLow,
      ]
      let register = registers[Int(below(3))]
      // Both halves of one harmless address, so that they cannot meet another's.
      var address = harmlessAddress()
      if address < Victim.endOfRAM { address &= ~UInt64(below(2) == 0 ? 15 : 0) }
      device.write(register + 4, 0xffff)
      device.write(register, UInt32(truncatingIfNeeded: address))
      device.write(register + 4, UInt32(truncatingIfNeeded: address >> 32))
    case 5: _ = mmio_read64(device.base + below(0x1f8))
    case 6:
      device.write(MMIORegister.driverFeaturesSelect, UInt32(below(3)))
      device.write(MMIORegister.driverFeatures, UInt32(truncatingIfNeeded: below(1 << 32)))
    default: mmio_write8(device.base + 0x100 + below(0x100), UInt8(below(256)))
    }
  }
}
