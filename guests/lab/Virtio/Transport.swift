import LabC

/// One virtio-mmio window (virtio 1.2 §4.2), driver side.
struct Transport {
  let base: UInt64
  let irq: UInt32

  func read(_ register: UInt64) -> UInt32 { mmio_read32(base + register) }
  func write(_ register: UInt64, _ value: UInt32) { mmio_write32(base + register, value) }

  var deviceID: UInt32 { read(MMIORegister.deviceID) }
  var isModern: Bool {
    read(MMIORegister.magicValue) == MMIORegister.magic && read(MMIORegister.version) == MMIORegister.modernVersion
  }

  var status: UInt32 { read(MMIORegister.status) }

  func reset() {
    write(MMIORegister.status, 0)
    while status != 0 { cpu_pause() }
  }

  var offeredFeatures: UInt64 {
    write(MMIORegister.deviceFeaturesSelect, 0)
    let low = read(MMIORegister.deviceFeatures)
    write(MMIORegister.deviceFeaturesSelect, 1)
    return UInt64(read(MMIORegister.deviceFeatures)) << 32 | UInt64(low)
  }

  /// Reset up to FEATURES_OK. Returns the features both sides have, nil if the device does not agree.
  func negotiate(_ wanted: UInt64) -> UInt64? {
    reset()
    write(MMIORegister.status, DeviceStatus.acknowledge)
    write(MMIORegister.status, DeviceStatus.acknowledge | DeviceStatus.driver)
    let features = offeredFeatures & (wanted | CommonFeature.version1)
    guard features & CommonFeature.version1 != 0 else { return nil }
    write(MMIORegister.driverFeaturesSelect, 0)
    write(MMIORegister.driverFeatures, UInt32(truncatingIfNeeded: features))
    write(MMIORegister.driverFeaturesSelect, 1)
    write(MMIORegister.driverFeatures, UInt32(truncatingIfNeeded: features >> 32))
    let agreed = DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.featuresOK
    write(MMIORegister.status, agreed)
    return status & DeviceStatus.featuresOK != 0 ? features : nil
  }

  func start() {
    write(
      MMIORegister.status,
      DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.featuresOK | DeviceStatus.driverOK)
  }

  /// Tells the device where a queue is and makes it ready; nil if the device has no such queue. `memory` is for a queue
  /// set up again after a reset.
  func makeQueue(_ index: UInt32, size wanted: UInt16, eventIndex: Bool, memory: QueueMemory? = nil) -> SplitQueue? {
    write(MMIORegister.queueSelect, index)
    let largest = read(MMIORegister.queueSizeMax)
    guard largest > 0 else { return nil }
    let size = UInt16(min(UInt32(wanted), largest))
    let memory = memory ?? QueueMemory(size: size)
    memory.clear()
    write(MMIORegister.queueSize, UInt32(size))
    writeAddress(MMIORegister.queueDescriptorLow, memory.descriptors)
    writeAddress(MMIORegister.queueDriverLow, memory.avail)
    writeAddress(MMIORegister.queueDeviceLow, memory.used)
    write(MMIORegister.queueReady, 1)
    return SplitQueue(memory, size: size, index: index, notifyAddress: base + MMIORegister.queueNotify, eventIndex)
  }

  private func writeAddress(_ lowRegister: UInt64, _ pointer: UnsafeMutableRawPointer) {
    write(lowRegister, UInt32(truncatingIfNeeded: address(pointer)))
    write(lowRegister + 4, UInt32(truncatingIfNeeded: address(pointer) >> 32))
  }

  /// One exit: the driver knows from its rings what happened and does not read InterruptStatus.
  func acknowledgeInterrupt() {
    write(MMIORegister.interruptACK, MMIORegister.usedBufferInterrupt | MMIORegister.configurationInterrupt)
  }

  func configuration8(_ offset: UInt64) -> UInt8 { mmio_read8(base + MMIORegister.config + offset) }

  /// Two halves, read again when the generation changed in between (virtio 1.2 §4.2.2.1).
  func configuration64(_ offset: UInt64) -> UInt64 {
    while true {
      let generation = read(MMIORegister.configGeneration)
      let low = read(MMIORegister.config + offset)
      let high = read(MMIORegister.config + offset + 4)
      if read(MMIORegister.configGeneration) == generation { return UInt64(high) << 32 | UInt64(low) }
    }
  }
}

/// The windows the command line announces: `virtio_mmio.device=SIZE@ADDRESS:IRQ`.
enum Discovery {
  /// The `ordinal`-th device with this id.
  static func find(_ deviceID: UInt32, ordinal: Int = 0) -> Transport? {
    var left = ordinal
    var rest = CommandLine.text
    while let word = rest.next(separator: 0x20) {
      guard let value = CommandLine.valueOf(word, "virtio_mmio.device"), let transport = parse(value),
        transport.isModern, transport.deviceID == deviceID
      else { continue }
      if left == 0 { return transport }
      left -= 1
    }
    return nil
  }

  /// The first window with any device in it.
  static var first: Transport? {
    var rest = CommandLine.text
    while let word = rest.next(separator: 0x20) {
      if let value = CommandLine.valueOf(word, "virtio_mmio.device"), let transport = parse(value),
        transport.isModern, transport.deviceID != 0
      {
        return transport
      }
    }
    return nil
  }

  private static func parse(_ value: Bytes) -> Transport? {
    guard let at = value.firstIndex(of: 0x40) else { return nil }
    var rest = value.from(at + 1)
    guard let place = rest.next(separator: 0x3a), let base = place.number(),
      let number = rest.next(separator: 0x3a), let irq = number.number(), base >= 0x1000, base < 1 << 32, irq < 24
    else { return nil }
    return Transport(base: base, irq: UInt32(irq))
  }
}
