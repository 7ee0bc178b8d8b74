import LabC

/// virtio-blk, driver side: requests in numbered slots, each with its header, its status byte and one data buffer.
enum BlockDevice {
  nonisolated(unsafe) private(set) static var transport = Transport(base: 0, irq: 0)
  nonisolated(unsafe) static var queue = SplitQueue()
  nonisolated(unsafe) private(set) static var sectors: UInt64 = 0
  nonisolated(unsafe) private(set) static var canFlush = false
  nonisolated(unsafe) private(set) static var isReadOnly = false
  /// 32 bytes a slot: header (16), status (1).
  nonisolated(unsafe) private static var control = UnsafeMutableRawPointer.unset

  /// False if there is no block device.
  static func setUp(slots: Int) -> Bool {
    guard let found = Discovery.find(DeviceID.block) else { return false }
    transport = found
    let eventIndex = CommandLine.isOff("event_idx") ? 0 : CommonFeature.eventIndex
    guard let features = transport.negotiate(eventIndex | BlockFeature.flush | BlockFeature.readOnly) else {
      return false
    }
    canFlush = features & BlockFeature.flush != 0
    isReadOnly = features & BlockFeature.readOnly != 0
    sectors = transport.configuration64(0)
    guard let made = transport.makeQueue(0, size: 256, eventIndex: features & CommonFeature.eventIndex != 0) else {
      return false
    }
    queue = made
    control = Arena.takeZeroed(32 * slots, alignment: 4096)
    transport.start()
    Interrupts.route(irq: transport.irq)
    return true
  }

  /// Hands a request over; the device is told by `queue.notifyIfNeeded()`.
  static func submit(slot: Int, _ type: UInt32, sector: UInt64, _ data: UnsafeMutableRawPointer, _ length: Int) {
    let header = control + 32 * slot
    header.storeBytes(of: BlockRequestHeader(type: type, sector: sector), as: BlockRequestHeader.self)
    header.storeBytes(of: 0xff, toByteOffset: 16, as: UInt8.self)
    queue.append(address(header), UInt32(BlockRequestHeader.size), writable: false)
    if length > 0 { queue.append(address(data), UInt32(length), writable: type == BlockRequestType.read) }
    queue.append(address(header) + 16, 1, writable: true)
    queue.publish(token: UInt(slot))
  }

  /// A finished request: its slot and status.
  static func take() -> (slot: Int, status: UInt8)? {
    guard let (token, _) = queue.takeUsed() else { return nil }
    let slot = Int(token)
    return (slot, (control + 32 * slot).load(fromByteOffset: 16, as: UInt8.self))
  }
}
