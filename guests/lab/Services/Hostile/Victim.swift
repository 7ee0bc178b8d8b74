import LabC

/// The device a hostile driver abuses, at the level of registers and ring bytes. Everything a device may be told to write
/// to is either `scratch` or not RAM at all, so that the abuse cannot hit the abuser.
enum Victim {
  static let scratchSize: UInt64 = 1 << 20

  nonisolated(unsafe) private(set) static var transport = Transport(base: 0, irq: 0)
  nonisolated(unsafe) private(set) static var deviceID: UInt32 = 0
  nonisolated(unsafe) private(set) static var queueIndex: UInt32 = 0
  nonisolated(unsafe) private(set) static var size: UInt16 = 0
  nonisolated(unsafe) private(set) static var features: UInt64 = 0
  nonisolated(unsafe) private(set) static var sectors: UInt64 = 0
  nonisolated(unsafe) static var availIndex: UInt16 = 0
  nonisolated(unsafe) private static var rings = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private(set) static var scratch: UInt64 = 0
  /// Second queue of a network card: its receive ring.
  nonisolated(unsafe) private static var receiveRings = UnsafeMutableRawPointer.unset

  // MARK: Choice and set-up

  /// The wanted device, or another there is: block, network, entropy.
  static func choose(_ wanted: UInt32?) -> Bool {
    if rings.isUnset {
      rings = Arena.takeZeroed(16 * 4096, alignment: 65536)
      receiveRings = Arena.takeZeroed(16 * 4096, alignment: 65536)
      // Twice: a ring that begins at its end may be written behind it.
      scratch = address(Arena.takeZeroed(2 * Int(scratchSize), alignment: 4096))
    }
    let order: InlineArray<4, UInt32> = [wanted ?? DeviceID.block, DeviceID.block, DeviceID.network, DeviceID.entropy]
    for i in 0..<(wanted == nil ? 4 : 1) {
      // A card that serves clients is left alone.
      if order[i] == DeviceID.network, Interface.isUp { continue }
      guard let found = Discovery.find(order[i]) else { continue }
      transport = found
      deviceID = order[i]
      queueIndex = deviceID == DeviceID.network ? 1 : 0
      return true
    }
    return false
  }

  static var descriptors: UnsafeMutableRawPointer { rings }
  static var avail: UnsafeMutableRawPointer { rings + 8192 }
  static var used: UnsafeMutableRawPointer { rings + 16384 }
  /// One past the last byte of RAM.
  static var endOfRAM: UInt64 { Arena.end }

  /// Reset and an honest start, with every feature we know.
  @discardableResult
  static func bringUp() -> Bool {
    var wanted = CommonFeature.indirectDescriptors
    switch deviceID {
    case DeviceID.network:
      wanted |= NetFeature.checksum | NetFeature.hostTSO4 | NetFeature.hostTSO6 | NetFeature.mergeableBuffers
    case DeviceID.block:
      wanted |= BlockFeature.flush | BlockFeature.discard | BlockFeature.writeZeroes | BlockFeature.readOnly
    default: break
    }
    guard let agreed = transport.negotiate(wanted) else { return false }
    features = agreed
    if deviceID == DeviceID.block { sectors = transport.configuration64(0) }
    if deviceID == DeviceID.network { setUpQueue(0, receiveRings) }
    size = setUpQueue(queueIndex, rings)
    availIndex = 0
    transport.start()
    return size > 0
  }

  @discardableResult
  static func setUpQueue(_ index: UInt32, _ memory: UnsafeMutableRawPointer) -> UInt16 {
    _ = memset(memory, 0, 16 * 4096)
    transport.write(MMIORegister.queueSelect, index)
    let size = UInt16(min(transport.read(MMIORegister.queueSizeMax), 256))
    transport.write(MMIORegister.queueSize, UInt32(size))
    setRing(MMIORegister.queueDescriptorLow, address(memory))
    setRing(MMIORegister.queueDriverLow, address(memory) + 8192)
    setRing(MMIORegister.queueDeviceLow, address(memory) + 16384)
    transport.write(MMIORegister.queueReady, 1)
    return size
  }

  static func setRing(_ register: UInt64, _ address: UInt64) {
    transport.write(register, UInt32(truncatingIfNeeded: address))
    transport.write(register + 4, UInt32(truncatingIfNeeded: address >> 32))
  }

  // MARK: Rings

  static func descriptor(_ i: UInt16, _ address: UInt64, _ length: UInt32, _ flags: UInt16, next: UInt16 = 0) {
    descriptor(in: descriptors, i, address, length, flags, next: next)
  }

  static func descriptor(
    in table: UnsafeMutableRawPointer, _ i: UInt16, _ address: UInt64, _ length: UInt32, _ flags: UInt16,
    next: UInt16 = 0
  ) {
    let slot = table + Int(i) * 16
    slot.storeBytes(of: address, as: UInt64.self)
    slot.storeBytes(of: length, toByteOffset: 8, as: UInt32.self)
    slot.storeBytes(of: flags, toByteOffset: 12, as: UInt16.self)
    slot.storeBytes(of: next, toByteOffset: 14, as: UInt16.self)
  }

  static func offer(_ head: UInt16) {
    avail.storeBytes(of: head, toByteOffset: 4 + 2 * Int(availIndex & (size - 1)), as: UInt16.self)
    setAvailIndex(availIndex &+ 1)
  }

  static func setAvailIndex(_ value: UInt16) {
    availIndex = value
    store16(avail + 2, value)
  }

  static var usedIndex: UInt16 { load16(used + 2) }

  static func notify(_ queue: UInt32? = nil) { transport.write(MMIORegister.queueNotify, queue ?? queueIndex) }

  /// Offers one chain, notifies, and gives the device a little time.
  static func submit(_ head: UInt16) {
    let before = usedIndex
    offer(head)
    notify()
    settle(from: before)
  }

  /// Until the used index moves, the device asks for a reset, or 3 ms are over.
  static func settle(from before: UInt16) {
    let end = Clock.now + 3_000_000
    while Clock.now < end {
      if usedIndex != before || transport.status & DeviceStatus.needsReset != 0 { return }
      Processors.pause(microseconds: 50)
    }
  }

  // MARK: An honest request

  /// Header and status of a block request lie in scratch, at 0 and 64.
  static func header(_ type: UInt32, _ sector: UInt64) {
    physical(scratch).storeBytes(of: BlockRequestHeader(type: type, sector: sector), as: BlockRequestHeader.self)
    physical(scratch + 64).storeBytes(of: 0xff, as: UInt8.self)
  }

  static var blockStatus: UInt8 { mmio_read8(scratch + 64) }

  /// Head and, for a block device, tail of a request with `count` data descriptors 1...count between them.
  static func frameRequest(_ type: UInt32, sector: UInt64, dataDescriptors count: UInt16) {
    header(type, sector)
    descriptor(0, scratch, 16, VirtqueueDescriptor.next, next: 1)
    descriptor(count + 1, scratch + 64, 1, VirtqueueDescriptor.write)
  }

  /// A request that must work: reads sector 0, sends a frame, or asks for entropy. False after two seconds without answer.
  static func works() -> Bool {
    let before = usedIndex
    switch deviceID {
    case DeviceID.block:
      frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: 1)
      descriptor(1, scratch + 4096, 512, VirtqueueDescriptor.write | VirtqueueDescriptor.next, next: 2)
    case DeviceID.network:
      _ = memset(physical(scratch), 0, 128)
      _ = memset(physical(scratch + 12), 0xff, 6)
      descriptor(0, scratch, 12 + 60, 0)
    default:
      descriptor(0, scratch, 16, VirtqueueDescriptor.write)
    }
    offer(0)
    notify()
    let end = Clock.now + 2_000_000_000
    while usedIndex == before {
      if Clock.now > end { return false }
      cpu_pause()
    }
    return deviceID != DeviceID.block || blockStatus == BlockStatus.ok
  }
}
