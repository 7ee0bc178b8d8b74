import LabC

/// Abuse of the register window: queue set-up, status machine, features, notifications.
enum SetUpCases {
  private static var device: Transport { Victim.transport }
  private static let agreed = DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.featuresOK

  /// Reset up to FEATURES_OK, then this queue set-up, DRIVER_OK, and a request.
  private static func attempt(size: UInt32, _ descriptors: UInt64, _ avail: UInt64, _ used: UInt64) {
    guard device.negotiate(0) != nil else { return }
    device.write(MMIORegister.queueSelect, Victim.queueIndex)
    device.write(MMIORegister.queueSize, size)
    Victim.setRing(MMIORegister.queueDescriptorLow, descriptors)
    Victim.setRing(MMIORegister.queueDriverLow, avail)
    Victim.setRing(MMIORegister.queueDeviceLow, used)
    device.write(MMIORegister.queueReady, 1)
    device.start()
    Victim.notify()
    Processors.pause(microseconds: 200)
  }

  private static var descriptors: UInt64 { address(Victim.descriptors) }
  private static var avail: UInt64 { address(Victim.avail) }
  private static var used: UInt64 { address(Victim.used) }

  static func ringSize() {
    let sizes: InlineArray<7, UInt32> = [0, 3, 100, 0x8000, 0xffff, 0x10000, 0xffff_ffff]
    for i in 0..<7 { attempt(size: sizes[i], descriptors, avail, used) }
  }

  static func ringMisaligned() {
    attempt(size: 16, descriptors + 1, avail, used)
    attempt(size: 16, descriptors, avail + 1, used)
    attempt(size: 16, descriptors, avail, used + 1)
    attempt(size: 16, descriptors + 8, avail + 1, used + 2)
  }

  static func ringOverlap() {
    attempt(size: 16, Victim.scratch, Victim.scratch, Victim.scratch)
    attempt(size: 16, Victim.scratch, Victim.scratch + 16, Victim.scratch + 32)
  }

  static func ringOutsideRAM() {
    let places: InlineArray<6, UInt64> = [
      Victim.endOfRAM, Victim.endOfRAM - 16, 0xffff_ffff_ffff_f000, 0x8000_0000_0000, 0xffff_f000, 0xbfff_f000,
    ]
    for i in 0..<6 {
      attempt(size: 128, places[i], avail, used)
      attempt(size: 128, descriptors, places[i], used)
      attempt(size: 128, descriptors, avail, places[i])
    }
  }

  static func ringInWindow() {
    attempt(size: 16, device.base, device.base + 0x200, device.base + 0x400)
    attempt(size: 16, descriptors, avail, 0xfee0_0000)
  }

  static func ringWithoutAddress() {
    // The guest's page 0 is not used for anything: a device that takes "no address" for 0 harms nobody.
    attempt(size: 16, 0, 0, 0)
  }

  // MARK: Registers

  static func registerAbuse() {
    for offset in UInt64(0)..<0x100 {
      _ = mmio_read8(device.base + offset)
      if offset & 1 == 0 { _ = mmio_read16(device.base + offset) }
      if offset & 3 == 0 { _ = mmio_read64(device.base + offset) }
      _ = mmio_read32(device.base + offset)  // unaligned ones too
    }
    // Narrow and wide writes, and writes to what is read-only.
    for offset in UInt64(0)..<0x100 where offset < 0x80 || offset > 0xa8 {
      mmio_write8(device.base + offset, 0xff)
      if offset & 1 == 0 { mmio_write16(device.base + offset, 0xffff) }
      if offset & 7 == 0 { mmio_write64(device.base + offset, UInt64.max) }
    }
    let readOnly: InlineArray<7, UInt64> = [0, 4, 8, 0xc, 0x10, 0x34, 0x60]
    for i in 0..<7 { mmio_write32(device.base + readOnly[i], 0xffff_ffff) }
    // Selectors out of range.
    let far: InlineArray<4, UInt32> = [2, 1024, 0x8000_0000, 0xffff_ffff]
    for i in 0..<4 {
      device.write(MMIORegister.queueSelect, far[i])
      _ = device.read(MMIORegister.queueSizeMax)
      device.write(MMIORegister.queueSize, 8)
      device.write(MMIORegister.queueReady, 1)
      _ = device.read(MMIORegister.queueReady)
      device.write(MMIORegister.deviceFeaturesSelect, far[i])
      _ = device.read(MMIORegister.deviceFeatures)
      device.write(MMIORegister.driverFeaturesSelect, far[i])
      device.write(MMIORegister.driverFeatures, 0xffff_ffff)
    }
    device.write(MMIORegister.interruptACK, 0xffff_ffff)
    device.write(MMIORegister.interruptACK, 0)
  }

  /// Configuration space: past its end, to the top of the window, all widths, writes too.
  static func configurationAbuse() {
    let end = device.base & 0xfff == 0x000 || device.base < 0xd000_0000 ? UInt64(0x1000) : 0x200
    var offset: UInt64 = 0x100
    while offset < end {
      _ = mmio_read8(device.base + offset)
      _ = mmio_read32(device.base + offset)
      mmio_write8(device.base + offset, 0xff)
      mmio_write32(device.base + offset, 0xffff_ffff)
      offset += offset < 0x140 ? 1 : 61
    }
    _ = mmio_read64(device.base + end - 8)
    _ = mmio_read32(device.base + end - 4)
    _ = mmio_read8(device.base + end - 1)
    mmio_write64(device.base + end - 8, UInt64.max)
  }

  // MARK: Status and features

  static func statusAbuse() {
    device.reset()
    device.write(MMIORegister.status, DeviceStatus.driverOK)
    device.reset()
    device.write(MMIORegister.status, DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.driverOK)
    Victim.notify()
    device.reset()
    device.write(MMIORegister.status, 0xff)
    device.write(MMIORegister.status, DeviceStatus.acknowledge)  // bits taken away
    device.write(MMIORegister.status, 0xffff_ffff)
    device.write(MMIORegister.status, DeviceStatus.failed)
    device.reset()
    for i in UInt32(0)..<256 { device.write(MMIORegister.status, i) }
  }

  /// Queue registers after DRIVER_OK: to be ignored.
  static func lateRegisters() {
    device.write(MMIORegister.queueSelect, Victim.queueIndex)
    device.write(MMIORegister.queueSize, 1024)
    device.write(MMIORegister.queueSize, 3)
    Victim.setRing(MMIORegister.queueDescriptorLow, 0xffff_ffff_f000)
    Victim.setRing(MMIORegister.queueDriverLow, 0xffff_ffff_f000)
    Victim.setRing(MMIORegister.queueDeviceLow, 0xffff_ffff_f000)
    QueueCases.honest()
    Victim.submit(0)
    device.write(MMIORegister.queueReady, 0)
    Victim.submit(0)
    device.write(MMIORegister.queueReady, 1)
    Victim.submit(0)
  }

  static func featureAbuse() {
    device.reset()
    device.write(MMIORegister.status, DeviceStatus.acknowledge | DeviceStatus.driver)
    for select in UInt32(0)..<2 {  // features that were not offered
      device.write(MMIORegister.driverFeaturesSelect, select)
      device.write(MMIORegister.driverFeatures, 0xffff_ffff)
    }
    device.write(MMIORegister.status, agreed)
    device.start()
    QueueCases.honest()
    Victim.notify()
    device.reset()  // without VERSION_1
    device.write(MMIORegister.status, DeviceStatus.acknowledge | DeviceStatus.driver)
    for select in UInt32(0)..<2 {
      device.write(MMIORegister.driverFeaturesSelect, select)
      device.write(MMIORegister.driverFeatures, 0)
    }
    device.write(MMIORegister.status, agreed)
    // Features after FEATURES_OK.
    guard device.negotiate(0) != nil else { return }
    device.write(MMIORegister.driverFeaturesSelect, 0)
    device.write(MMIORegister.driverFeatures, 0xffff_ffff)
    device.start()
  }

  // MARK: Notifications

  static func notifyEarly() {
    device.reset()
    Victim.notify()
    device.write(MMIORegister.status, DeviceStatus.acknowledge | DeviceStatus.driver)
    Victim.notify()
    guard device.negotiate(0) != nil else { return }
    Victim.notify()
    Victim.setUpQueue(Victim.queueIndex, Victim.descriptors)
    Victim.availIndex = 0
    QueueCases.honest()
    Victim.offer(0)
    Victim.notify()  // queue ready, DRIVER_OK not set
    Processors.pause(microseconds: 500)
  }

  static func notifyOutOfRange() {
    let queues: InlineArray<6, UInt32> = [2, 3, 255, 0x10000, 0x8000_0000, 0xffff_ffff]
    for i in 0..<6 { Victim.notify(queues[i]) }
  }

  static func notifyStorm() {
    QueueCases.honest()
    Victim.offer(0)
    for _ in 0..<20_000 { Victim.notify() }
  }
}
