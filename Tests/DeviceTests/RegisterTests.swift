import Devices
import GuestMemory
import Testing
import VirtioLayout

private let data = TestDriver.buffers

@Suite("Family 4: ring set-up") struct RingSetUpTests {
  let driver: TestDriver
  static let end: UInt64 = 4 << 20

  init() throws {
    driver = try TestDriver(RecordingDevice(queueCount: 2))
    driver.negotiate(CommonFeature.eventIndex)
  }

  private func expectRefused(_ ready: UInt32, sourceLocation: SourceLocation = #_sourceLocation) {
    #expect(ready == 0, sourceLocation: sourceLocation)
    #expect(driver.mmio.mistakes[.queueSetup] > 0, sourceLocation: sourceLocation)
    #expect(!driver.needsReset, sourceLocation: sourceLocation)
    expectUsable(driver, sourceLocation: sourceLocation)
  }

  @Test(arguments: [0, 3, 6, 7, 255, 257, 512, 0x8000, 0xffff, 0x1_0000, 0x1_0008, 0xffff_ffff] as [UInt32])
  func ring_badSize_isRefused(size: UInt32) { expectRefused(driver.setUpQueue(0, size: size)) }

  @Test(arguments: [1, 2, 4, 8, 16, 32, 64, 128, 256] as [UInt32])
  func ring_powerOfTwoUpToTheMaximum_isAccepted(size: UInt32) {
    #expect(driver.setUpQueue(0, size: size) == 1)
    #expect(driver.mmio.mistakes.total == 0)
  }

  @Test(arguments: [1, 2, 4, 8] as [UInt64])
  func ring_misalignedDescriptorTable_isRefused(by offset: UInt64) {
    expectRefused(driver.setUpQueue(0, size: 8, descriptors: 0x1_0000 + offset))
  }

  @Test func ring_misalignedAvailRing_isRefused() { expectRefused(driver.setUpQueue(0, size: 8, avail: 0x1_1001)) }

  @Test(arguments: [1, 2, 3] as [UInt64])
  func ring_misalignedUsedRing_isRefused(by offset: UInt64) {
    expectRefused(driver.setUpQueue(0, size: 8, used: 0x1_2000 + offset))
  }

  @Test func ring_overlappingParts_areRefused() {
    expectRefused(driver.setUpQueue(0, size: 8, descriptors: 0x1_0000, avail: 0x1_0000))
    driver.negotiate()
    expectRefused(driver.setUpQueue(0, size: 8, descriptors: 0x1_0000, avail: 0x1_007e))
    driver.negotiate()
    expectRefused(driver.setUpQueue(0, size: 8, avail: 0x1_1000, used: 0x1_1000 + 20))
    driver.negotiate()
    expectRefused(driver.setUpQueue(0, size: 8, descriptors: 0x1_2000, used: 0x1_2000 + 124))
  }

  @Test func ring_adjacentParts_areAccepted() {
    // 8 entries: 128 bytes of descriptors, 22 of avail ring, aligned up to 4 for the used ring.
    #expect(driver.setUpQueue(0, size: 8, descriptors: 0x1_0000, avail: 0x1_0080, used: 0x1_0098) == 1)
  }

  @Test(arguments: [4 << 20, (4 << 20) - 64, 0xd000_0000, 0xffff_ffff_ffff_fff0, 1 << 63] as [UInt64])
  func ring_outsideRAM_isRefused(address: UInt64) {
    expectRefused(driver.setUpQueue(0, size: 8, descriptors: address))
    driver.negotiate()
    expectRefused(driver.setUpQueue(0, size: 64, avail: address))
    driver.negotiate()
    expectRefused(driver.setUpQueue(0, size: 64, used: address))
  }

  @Test func ring_endingAtTheLastByteOfRAM_isAccepted() {
    #expect(driver.setUpQueue(0, size: 8, descriptors: Self.end - 128) == 1)
    driver.negotiate()
    // 4 + 8 × 8 + 2 = 70 bytes; the alignment of 4 leaves two bytes free.
    #expect(driver.setUpQueue(0, size: 8, used: Self.end - 72) == 1)
    driver.negotiate()
    #expect(driver.setUpQueue(0, size: 8, used: Self.end - 68) == 0)
    driver.negotiate()
    #expect(driver.setUpQueue(0, size: 8, avail: Self.end - 22) == 1)
    driver.negotiate()
    #expect(driver.setUpQueue(0, size: 8, avail: Self.end - 20) == 0)
  }

  @Test func ring_readyWithoutAddressesOrSize_isRefused() {
    driver.write(MMIORegister.queueSelect, 0)
    driver.write(MMIORegister.queueReady, 1)
    expectRefused(driver.read(MMIORegister.queueReady))
  }

  @Test(arguments: [2, 3, 0x8000_0001] as [UInt32])
  func ring_readyWithOtherThanOne_isRefused(value: UInt32) {
    driver.setUpQueue(0, size: 8)
    driver.write(MMIORegister.queueReady, 0)
    driver.write(MMIORegister.queueReady, value)
    expectRefused(driver.read(MMIORegister.queueReady))
  }

  @Test func ring_changedWhileReady_isIgnored() {
    driver.setUpQueue(0, size: 8)
    driver.write(MMIORegister.queueSize, 256)
    driver.write(MMIORegister.queueDriverLow, 0xffff_fff0)
    #expect(driver.mmio.mistakes[.queueSetup] == 2)
    driver.queues = [DriverQueue(index: 0, size: 8)]
    driver.setStatus(driver.status | DeviceStatus.driverOK)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.takeUsed().count == 1)
  }

  @Test func ring_setUpBeforeFeaturesOK_isIgnored() {
    driver.reset()
    driver.setStatus(DeviceStatus.acknowledge | DeviceStatus.driver)
    expectRefused(driver.setUpQueue(0, size: 8))
  }
}

@Suite("Family 9: registers") struct RegisterTests {
  let driver: TestDriver
  static let defined: [UInt64: UInt32] = [
    MMIORegister.magicValue: 0x7472_6976, MMIORegister.version: 2, MMIORegister.deviceID: 42,
  ]

  init() throws { driver = try TestDriver(RecordingDevice(queueCount: 2)) }

  @Test func register_identification_readsAsTheStandardSays() {
    for (offset, value) in Self.defined { #expect(driver.read(offset) == value) }
    #expect(driver.mmio.mistakes.total == 0)
  }

  @Test(arguments: [1, 2, 8], [MMIORegister.magicValue, MMIORegister.status, MMIORegister.interruptStatus])
  func register_otherWidthsThanFourBytes_readZeroAndAreCounted(size: Int, offset: UInt64) {
    #expect(driver.mmio.read(offset: offset, size: size) == 0)
    driver.mmio.write(offset: offset, size: size, value: 1)
    #expect(driver.mmio.mistakes[.register] == 2)
    #expect(driver.status == 0)
  }

  @Test(arguments: [1, 2, 3, 5, 0x71, 0x72] as [UInt64])
  func register_misaligned_readsZeroAndIsCounted(offset: UInt64) {
    #expect(driver.read(offset) == 0)
    driver.write(offset, 0xff)
    #expect(driver.mmio.mistakes[.register] == 2)
  }

  /// Every offset of the window, every width, reads and writes: nothing traps and only register mistakes are counted.
  @Test func register_everyOffsetAndWidth_neverTraps() {
    for offset in 0..<0x1000 as Range<UInt64> {
      for size in [1, 2, 4, 8] {
        _ = driver.mmio.read(offset: offset, size: size)
        for value in [0, 1, 0xffff_ffff_ffff_ffff] as [UInt64] {
          driver.mmio.write(offset: offset, size: size, value: value)
        }
      }
    }
    #expect(driver.mmio.mistakes[.chain] == 0)
    expectUsable(driver)
  }

  @Test(
    arguments: [
      MMIORegister.magicValue, MMIORegister.version, MMIORegister.deviceID, MMIORegister.vendorID,
      MMIORegister.deviceFeatures, MMIORegister.queueSizeMax, MMIORegister.interruptStatus,
      MMIORegister.configGeneration,
    ])
  func register_writeToReadOnly_isIgnoredAndCounted(offset: UInt64) {
    let before = driver.read(offset)
    driver.write(offset, ~before)
    #expect(driver.read(offset) == before)
    #expect(driver.mmio.mistakes[.register] == 1)
  }

  @Test(arguments: [2, 3, 0x7fff_ffff, 0xffff_ffff] as [UInt32])
  func register_queueSelectOutOfRange_hasNoQueue(index: UInt32) {
    driver.negotiate()
    driver.write(MMIORegister.queueSelect, index)
    #expect(driver.read(MMIORegister.queueSizeMax) == 0)
    #expect(driver.read(MMIORegister.queueReady) == 0)
    driver.write(MMIORegister.queueSize, 8)
    driver.write(MMIORegister.queueReady, 1)
    #expect(driver.read(MMIORegister.queueReady) == 0)
    #expect(driver.mmio.mistakes[.queueSetup] == 2)
    expectUsable(driver)
  }

  @Test(arguments: [2, 3, 0xffff_ffff] as [UInt32])
  func register_featureSelectOutOfRange_readsZero(index: UInt32) {
    driver.write(MMIORegister.deviceFeaturesSelect, index)
    #expect(driver.read(MMIORegister.deviceFeatures) == 0)
    driver.setStatus(DeviceStatus.acknowledge)
    driver.setStatus(DeviceStatus.acknowledge | DeviceStatus.driver)
    driver.write(MMIORegister.driverFeaturesSelect, index)
    driver.write(MMIORegister.driverFeatures, 0)
    #expect(driver.mmio.mistakes.total == 0)
    driver.write(MMIORegister.driverFeatures, 1)
    #expect(driver.mmio.mistakes[.register] == 1)
  }

  @Test func configuration_everyWidth_readsLittleEndian() {
    #expect(driver.mmio.read(offset: 0x100, size: 1) == 1)
    #expect(driver.mmio.read(offset: 0x101, size: 2) == 0x0302)
    #expect(driver.mmio.read(offset: 0x100, size: 4) == 0x0403_0201)
    #expect(driver.mmio.read(offset: 0x100, size: 8) == 0x0000_0605_0403_0201)
  }

  @Test(
    arguments: [(0x105, 4, 6), (0x106, 1, 0), (0x106, 8, 0), (0xff8, 8, 0), (0xfff, 1, 0)] as [(UInt64, Int, UInt64)])
  func configuration_beyondItsEnd_readsZero(offset: UInt64, size: Int, value: UInt64) {
    #expect(driver.mmio.read(offset: offset, size: size) == value)
  }

  @Test(arguments: [1, 2, 4, 8])
  func configuration_write_isIgnoredAndCounted(size: Int) {
    driver.mmio.write(offset: 0x100, size: size, value: 0xffff_ffff)
    #expect(driver.mmio.read(offset: 0x100, size: 4) == 0x0403_0201)
    #expect(driver.mmio.mistakes[.register] == 1)
  }

  @Test func interruptACK_partial_clearsOnlyItsBits() {
    driver.start()
    driver.add(0, [.writable(data, 16)])
    driver.offer(0xffff)
    driver.kick()
    driver.start()
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.read(MMIORegister.interruptStatus) == 1)
    driver.offer(0xffff)
    driver.kick()
    #expect(driver.read(MMIORegister.interruptStatus) == 3)
    driver.write(MMIORegister.interruptACK, 2)
    #expect(driver.read(MMIORegister.interruptStatus) == 1)
    driver.write(MMIORegister.interruptACK, 0xffff_fffc)
    #expect(driver.read(MMIORegister.interruptStatus) == 1)
    driver.mmio.write(offset: MMIORegister.interruptACK, size: 2, value: 1)
    #expect(driver.read(MMIORegister.interruptStatus) == 1)
    driver.write(MMIORegister.interruptACK, 1)
    #expect(driver.read(MMIORegister.interruptStatus) == 0)
  }

  @Test func bus_accessAcrossTheTopOfAWindow_readsAllOnes() {
    var bus = Bus()
    let windows: [(UInt64, UInt64)] = [
      (0xd000_0000, 0x1000), (0xd000_0fff, 0x1000), (UInt64.max - 10, 0x1000), (0, 0), (0xd000_1000, 0x1000),
    ]
    let added = windows.map { bus.add(driver.mmio, at: $0, size: $1) }
    #expect(added == [true, false, false, false, true])
    #expect(bus.read(at: 0xd000_0000, size: 4) == 0x7472_6976)
    #expect(bus.read(at: 0xd000_0ffe, size: 4) == 0xffff_ffff)
    #expect(bus.read(at: 0xd000_1ffc, size: 8) == UInt64.max)
    #expect(bus.read(at: 0xd000_2000, size: 1) == 0xff)
    #expect(bus.read(at: 0xcfff_fffe, size: 4) == 0xffff_ffff)
    #expect(bus.read(at: UInt64.max, size: 8) == UInt64.max)
    bus.write(at: 0xd000_0ffe, size: 4, value: 1)
    bus.write(at: UInt64.max, size: 8, value: 1)
    #expect(driver.mmio.mistakes.total == 0)
  }
}

@Suite("Family 10: status machine") struct StatusTests {
  let driver: TestDriver
  private let seenDriver = DeviceStatus.acknowledge | DeviceStatus.driver

  init() throws { driver = try TestDriver(RecordingDevice(features: 1 << 3)) }

  @Test func status_theStandardsOrder_isAccepted() {
    driver.start(1 << 3)
    #expect(driver.status == seenDriver | DeviceStatus.featuresOK | DeviceStatus.driverOK)
    #expect(driver.mmio.mistakes.total == 0)
  }

  @Test func status_driverOKWithoutFeaturesOK_isRefused() {
    driver.setStatus(seenDriver)
    driver.setStatus(seenDriver | DeviceStatus.driverOK)
    #expect(driver.status == seenDriver)
    #expect(driver.mmio.mistakes[.status] == 1)
    driver.kick()
    expectUsable(driver)
  }

  @Test func status_driverWithoutAcknowledge_isRefused() {
    driver.setStatus(DeviceStatus.driver)
    #expect(driver.status == 0)
    #expect(driver.mmio.mistakes[.status] == 1)
  }

  @Test func status_bitsCleared_isRefused() {
    driver.start()
    let running = driver.status
    for bit in [DeviceStatus.acknowledge, DeviceStatus.driver, DeviceStatus.driverOK, DeviceStatus.featuresOK] {
      driver.setStatus(running & ~bit)
      #expect(driver.status == running)
    }
    #expect(driver.mmio.mistakes[.status] == 4)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.takeUsed().count == 1)
  }

  @Test(arguments: [0x10, 0x20, 0x100, 0x8000_0000] as [UInt32])
  func status_undefinedBits_areRefused(bit: UInt32) {
    driver.setStatus(DeviceStatus.acknowledge | bit)
    #expect(driver.status == 0)
    #expect(driver.mmio.mistakes[.status] == 1)
  }

  @Test func status_driverCannotSetOrClearNeedsReset() {
    driver.setStatus(DeviceStatus.acknowledge | DeviceStatus.needsReset)
    #expect(driver.status == DeviceStatus.acknowledge)
    driver.start()
    driver.offer(0xffff)
    driver.kick()
    let broken = driver.status
    driver.setStatus(broken & ~DeviceStatus.needsReset)
    #expect(driver.status == broken)
  }

  @Test func features_notOffered_areRefusedAtFeaturesOK() {
    driver.negotiate(1 << 4)
    #expect(driver.status & DeviceStatus.featuresOK == 0)
    driver.setStatus(driver.status | DeviceStatus.driverOK)
    #expect(driver.status & DeviceStatus.driverOK == 0)
    expectUsable(driver)
  }

  @Test func features_withoutVersion1_areRefusedAtFeaturesOK() {
    driver.setStatus(seenDriver)
    driver.setStatus(seenDriver | DeviceStatus.featuresOK)
    #expect(driver.status & DeviceStatus.featuresOK == 0)
    #expect(driver.mmio.mistakes[.status] == 1)
  }

  @Test func features_writtenAfterFeaturesOK_areIgnored() {
    driver.negotiate()
    driver.write(MMIORegister.driverFeaturesSelect, 0)
    driver.write(MMIORegister.driverFeatures, UInt32(CommonFeature.indirectDescriptors))
    #expect(driver.mmio.mistakes[.status] == 1)
    driver.queues = [DriverQueue(index: 0, size: 8)]
    driver.setUpQueue(0, size: 8)
    driver.setStatus(driver.status | DeviceStatus.driverOK)
    driver.describe(table: data, 0, data + 64, 16, flags: VirtqueueDescriptor.write)
    driver.describe(0, data, 16, flags: VirtqueueDescriptor.indirect)
    driver.offer(0)
    driver.kick()
    #expect(driver.needsReset)
  }

  @Test func features_beforeDriver_areIgnored() {
    driver.setStatus(DeviceStatus.acknowledge)
    driver.write(MMIORegister.driverFeatures, 1)
    #expect(driver.mmio.mistakes[.status] == 1)
  }

  /// A queue made larger after it was checked would reach beyond its rings.
  @Test func queueRegisters_afterDriverOK_areIgnored() {
    driver.start(size: 8)
    for (register, value) in [
      (MMIORegister.queueSize, 256), (MMIORegister.queueReady, 0), (MMIORegister.queueDescriptorLow, 0x3f_fff0),
      (MMIORegister.queueDriverHigh, 1), (MMIORegister.queueDeviceLow, 0x3f_fff0),
    ] as [(UInt64, UInt32)] {
      driver.write(MMIORegister.queueSelect, 0)
      driver.write(register, value)
    }
    #expect(driver.mmio.mistakes[.queueSetup] == 5)
    #expect(driver.read(MMIORegister.queueReady) == 1)
    for _ in 0..<20 {
      driver.add(0, [.writable(data, 16)])
      driver.kick()
      #expect(driver.takeUsed().count == 1)
    }
  }

  @Test func status_driverOKTwice_isHarmless() {
    driver.start()
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    driver.setStatus(driver.status)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.takeUsed().count == 2)
    #expect(driver.mmio.mistakes.total == 0)
  }

  @Test func status_driverOKWhileNeedingReset_isRefused() {
    driver.start()
    driver.offer(0xffff)
    driver.kick()
    driver.setStatus(driver.status | DeviceStatus.driverOK)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func status_failed_isKeptUntilReset() {
    driver.setStatus(DeviceStatus.acknowledge | DeviceStatus.failed)
    #expect(driver.status & DeviceStatus.failed != 0)
    driver.reset()
    #expect(driver.status == 0)
  }
}
