import LabC

/// Malformed chains and rings, on any device. Block devices get a valid request header first, so that the fault is found
/// where it lies and not in the header.
enum QueueCases {
  private static let next = VirtqueueDescriptor.next
  private static let write = VirtqueueDescriptor.write
  private static let indirect = VirtqueueDescriptor.indirect
  private static var data: UInt64 { Victim.scratch + 4096 }

  // MARK: Chain shape

  static func selfLoop() {
    Victim.header(BlockRequestType.read, 0)
    Victim.descriptor(0, Victim.scratch, 16, next, next: 0)
    Victim.submit(0)
  }

  static func twoCycle() {
    Victim.header(BlockRequestType.read, 0)
    Victim.descriptor(0, Victim.scratch, 16, next, next: 1)
    Victim.descriptor(1, data, 512, write | next, next: 2)
    Victim.descriptor(2, data, 512, write | next, next: 1)
    Victim.submit(0)
  }

  /// As many descriptors as the queue has: allowed.
  static func exactSize() {
    let before = Victim.usedIndex
    chain(Victim.size)
    Victim.submit(0)
    Hostile.expect(Victim.usedIndex != before, "a chain of exactly the queue's size must come back")
  }

  /// One more, by way of an indirect table of size + 1 (a direct chain of that length is a loop).
  static func tooLong() {
    let table = physical(Victim.scratch + 65536)
    let count = Victim.size &+ 1
    Victim.header(BlockRequestType.read, 0)
    for i in 0..<count {
      Victim.descriptor(in: table, i, data, 512, i + 1 < count ? write | next : write, next: i + 1)
    }
    Victim.descriptor(in: table, 0, Victim.scratch, 16, next, next: 1)
    Victim.descriptor(0, Victim.scratch + 65536, UInt32(count) * 16, indirect)
    Victim.submit(0)
  }

  static func nextOutOfRange() {
    Victim.header(BlockRequestType.read, 0)
    let targets: InlineArray<4, UInt16> = [Victim.size, Victim.size &+ 1, 0x7fff, 0xffff]
    for i in 0..<4 {
      Victim.descriptor(0, Victim.scratch, 16, next, next: targets[i])
      Victim.submit(0)
    }
  }

  static func headOutOfRange() {
    Victim.submit(Victim.size)
    Victim.submit(0xffff)
  }

  /// The same head several times before the device looks: it must not take memory for each.
  static func headTwice() {
    honest()
    for _ in 0..<64 { Victim.offer(0) }
    Victim.submit(0)
  }

  // MARK: Avail ring

  static func availJump() {
    honest()
    Victim.setAvailIndex(Victim.availIndex &+ Victim.size &+ 1)
    Victim.notify()
    Victim.settle(from: Victim.usedIndex)
  }

  static func availBackwards() {
    honest()
    Victim.submit(0)
    Victim.setAvailIndex(Victim.availIndex &- 1)
    Victim.notify()
    Victim.settle(from: Victim.usedIndex)
  }

  /// Honest requests across 0xffff → 0 would take long: jump there in steps the device may refuse.
  static func availWrap() {
    honest()
    for _ in 0..<600 {
      let before = Victim.usedIndex
      for _ in 0..<128 { Victim.offer(0) }
      Victim.notify()
      Victim.settle(from: before)
      if Victim.transport.status & DeviceStatus.needsReset != 0 { return }
    }
  }

  static func availGarbage() {
    for i in 0..<Int(Victim.size) {
      let garbage = UInt16(truncatingIfNeeded: Hostile.random.next())
      Victim.avail.storeBytes(of: garbage, toByteOffset: 4 + 2 * i, as: UInt16.self)
    }
    Victim.setAvailIndex(Victim.size)
    Victim.notify()
    Victim.settle(from: 0)
  }

  // MARK: Indirect tables

  static func indirectNested() {
    let table = physical(Victim.scratch + 65536)
    Victim.descriptor(in: table, 0, Victim.scratch + 65536, 32, indirect)
    Victim.descriptor(in: table, 1, data, 512, write)
    Victim.descriptor(0, Victim.scratch + 65536, 32, indirect)
    Victim.submit(0)
  }

  static func indirectWithNext() {
    indirectTable()
    Victim.descriptor(0, Victim.scratch + 65536, 48, indirect | next, next: 1)
    Victim.descriptor(1, data, 512, write)
    Victim.submit(0)
  }

  static func indirectLength() {
    indirectTable()
    let lengths: InlineArray<4, UInt32> = [0, 1, 15, 17]
    for i in 0..<4 {
      Victim.descriptor(0, Victim.scratch + 65536, lengths[i], indirect)
      Victim.submit(0)
    }
  }

  static func indirectHuge() {
    indirectTable()
    Victim.descriptor(0, Victim.scratch + 65536, 0xffff_fff0, indirect)
    Victim.submit(0)
    Victim.descriptor(0, Victim.scratch + 65536, 0x10000 * 16, indirect)
    Victim.submit(0)
  }

  static func indirectOutside() {
    Victim.descriptor(0, 0x8000_0000_0000_0000, 48, indirect)
    Victim.submit(0)
    Victim.descriptor(0, Victim.endOfRAM - 16, 48, indirect)
    Victim.submit(0)
    Victim.descriptor(0, 0xffff_ffff_ffff_fff0, 48, indirect)
    Victim.submit(0)
  }

  static func indirectLoop() {
    let table = physical(Victim.scratch + 65536)
    Victim.header(BlockRequestType.read, 0)
    Victim.descriptor(in: table, 0, Victim.scratch, 16, next, next: 1)
    Victim.descriptor(in: table, 1, data, 512, write | next, next: 1)
    Victim.descriptor(0, Victim.scratch + 65536, 32, indirect)
    Victim.submit(0)
    Victim.descriptor(in: table, 1, data, 512, write | next, next: 2)  // outside the table
    Victim.submit(0)
  }

  static func indirectUnnegotiated() {
    guard Victim.transport.negotiate(0) != nil else { return }
    if Victim.deviceID == DeviceID.network { return }
    Victim.setUpQueue(Victim.queueIndex, Victim.descriptors)
    Victim.availIndex = 0
    Victim.transport.start()
    indirectTable()
    Victim.descriptor(0, Victim.scratch + 65536, 48, indirect)
    Victim.submit(0)
  }

  private static func indirectTable() {
    let table = physical(Victim.scratch + 65536)
    Victim.header(BlockRequestType.read, 0)
    Victim.descriptor(in: table, 0, Victim.scratch, 16, next, next: 1)
    Victim.descriptor(in: table, 1, data, 512, write | next, next: 2)
    Victim.descriptor(in: table, 2, Victim.scratch + 64, 1, write)
  }

  // MARK: Buffers

  static func bufferWraps() {
    withData(0xffff_ffff_ffff_ff00, 512)
    withData(0xffff_ffff_ffff_ffff, 0xffff_ffff)
    withData(UInt64.max - 511, 512)
  }

  static func bufferAtEndOfRAM() {
    let before = Victim.usedIndex
    withData(Victim.endOfRAM - 512, 512)
    Hostile.expect(Victim.usedIndex != before, "a buffer that ends with RAM must work")
  }

  static func bufferPastRAM() {
    withData(Victim.endOfRAM - 511, 512)
    withData(Victim.endOfRAM, 512)
    withData(0xc000_1000, 512)  // a device window
    withData(0xfee0_0000, 512)
    withData(0x8000_0000_0000, 512)
  }

  /// Lengths that add up to more than 32 bits.
  static func bufferTotal() {
    Victim.frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: 16)
    for i in UInt16(1)...16 { Victim.descriptor(i, data, 0x2000_0000, write | next, next: i + 1) }
    Victim.submit(0)
  }

  static func bufferZero() {
    withData(data, 0)
    Victim.descriptor(0, Victim.scratch, 0, 0)
    Victim.submit(0)
    Victim.descriptor(0, Victim.scratch, 0, write)
    Victim.submit(0)
  }

  private static func withData(_ address: UInt64, _ length: UInt32) {
    Victim.frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: 1)
    Victim.descriptor(1, address, length, write | next, next: 2)
    if Victim.deviceID == DeviceID.network { Victim.descriptor(0, address, length, 0) }
    if Victim.deviceID == DeviceID.entropy { Victim.descriptor(0, address, length, write) }
    Victim.submit(0)
  }

  // MARK: Direction

  static func readableAfterWritable() {
    Victim.header(BlockRequestType.write, 0)
    Victim.descriptor(0, Victim.scratch + 64, 1, write | next, next: 1)
    Victim.descriptor(1, Victim.scratch, 16, next, next: 2)
    Victim.descriptor(2, data, 512, 0)
    Victim.submit(0)
  }

  /// A read whose data buffer the device may only read.
  static func writeToReadOnly() {
    Victim.frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: 1)
    Victim.descriptor(1, data, 512, next, next: 2)
    if Victim.deviceID == DeviceID.entropy { Victim.descriptor(0, data, 512, 0) }
    Victim.submit(0)
  }

  // MARK: Used ring

  /// More than 65536 completions, so that the used index wraps.
  static func usedWrap() {
    honest()
    let end = Clock.now + 10_000_000_000
    var done: UInt32 = 0
    while done < 66_000, Clock.now < end {
      let before = Victim.usedIndex
      for _ in 0..<64 { Victim.offer(0) }
      Victim.notify()
      while Victim.usedIndex &- before < 64, Clock.now < end { cpu_pause() }
      done += 64
    }
    Hostile.expect(done >= 66_000, "66 000 requests in 10 s")
  }

  /// The driver scribbles over what the device owns: used ring and its event index.
  static func eventPoison() {
    _ = memset(Victim.used, 0xff, Int(SplitRing.usedSize(Victim.size)))
    honest()
    Victim.submit(0)
    _ = memset(Victim.used, 0x55, Int(SplitRing.usedSize(Victim.size)))
    Victim.submit(0)
  }

  // MARK: Honest chains

  /// Descriptor 0 begins a request that is right.
  static func honest() {
    switch Victim.deviceID {
    case DeviceID.block:
      Victim.frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: 1)
      Victim.descriptor(1, data, 512, write | next, next: 2)
    case DeviceID.network:
      _ = memset(physical(Victim.scratch), 0, 128)
      Victim.descriptor(0, Victim.scratch, 72, 0)
    default: Victim.descriptor(0, Victim.scratch, 16, write)
    }
  }

  /// A direct chain of `count` descriptors that is a right request.
  private static func chain(_ count: UInt16) {
    Victim.header(BlockRequestType.read, 0)
    switch Victim.deviceID {
    case DeviceID.block:
      Victim.frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: count - 2)
      for i in 1..<count - 1 { Victim.descriptor(i, data + UInt64(i) * 512, 512, write | next, next: i + 1) }
    case DeviceID.network:
      _ = memset(physical(Victim.scratch), 0, 4096)
      for i in 0..<count { Victim.descriptor(i, Victim.scratch, 12, i + 1 < count ? next : 0, next: i + 1) }
    default:
      for i in 0..<count { Victim.descriptor(i, data, 4, i + 1 < count ? write | next : write, next: i + 1) }
    }
  }
}
