import LabC

/// Malformed block requests in well-formed chains: an error status, never more.
enum BlockCases {
  private static let next = VirtqueueDescriptor.next
  private static let write = VirtqueueDescriptor.write
  private static var data: UInt64 { Victim.scratch + 4096 }

  private static func request(_ type: UInt32, sector: UInt64, length: UInt32) {
    Victim.frameRequest(type, sector: sector, dataDescriptors: 1)
    let isRead = type == BlockRequestType.read || type == BlockRequestType.getID
    Victim.descriptor(1, data, length, isRead ? write | next : next, next: 2)
    Victim.submit(0)
  }

  static func statusReadOnly() {
    Victim.frameRequest(BlockRequestType.read, sector: 0, dataDescriptors: 1)
    Victim.descriptor(1, data, 512, write | next, next: 2)
    Victim.descriptor(2, Victim.scratch + 64, 1, 0)
    Victim.submit(0)
  }

  static func sectorOverflow() {
    let sectors: InlineArray<6, UInt64> = [
      Victim.sectors, Victim.sectors + 1, UInt64.max, UInt64.max / 512, UInt64.max / 512 + 1, 1 << 55,
    ]
    for i in 0..<6 {
      request(BlockRequestType.read, sector: sectors[i], length: 512)
      Hostile.expect(Victim.blockStatus != BlockStatus.ok, "a read past the end succeeded")
      request(BlockRequestType.write, sector: sectors[i], length: 512)
      Hostile.expect(Victim.blockStatus != BlockStatus.ok, "a write past the end succeeded")
    }
    request(BlockRequestType.read, sector: Victim.sectors - 1, length: 1024)
    Hostile.expect(Victim.blockStatus != BlockStatus.ok, "a read across the end succeeded")
  }

  static func lastSector() {
    request(BlockRequestType.read, sector: Victim.sectors - 1, length: 512)
    Hostile.expect(Victim.blockStatus == BlockStatus.ok, "the last sector must be readable")
  }

  static func oddLength() {
    request(BlockRequestType.read, sector: 0, length: 511)
    request(BlockRequestType.write, sector: Victim.sectors, length: 513)
    request(BlockRequestType.read, sector: 0, length: 1)
  }

  static func shortHeader() {
    Victim.header(BlockRequestType.read, 0)
    Victim.descriptor(0, Victim.scratch, 8, next, next: 1)
    Victim.descriptor(1, Victim.scratch + 64, 1, write)
    Victim.submit(0)
    Victim.descriptor(0, Victim.scratch, 16, 0)  // no status byte
    Victim.submit(0)
    Victim.descriptor(0, Victim.scratch + 64, 1, write)  // no header
    Victim.submit(0)
    Victim.descriptor(0, Victim.scratch, 16, write | next, next: 1)  // header in the wrong direction
    Victim.submit(0)
  }

  /// A header in two pieces is allowed (virtio 1.2 §2.7.4.1: framing is free).
  static func splitHeader() {
    Victim.header(BlockRequestType.read, 0)
    Victim.descriptor(0, Victim.scratch, 7, next, next: 1)
    Victim.descriptor(1, Victim.scratch + 7, 9, next, next: 2)
    Victim.descriptor(2, data, 512, write | next, next: 3)
    Victim.descriptor(3, Victim.scratch + 64, 1, write)
    Victim.submit(0)
  }

  static func unknownType() {
    let types: InlineArray<5, UInt32> = [6, 98, 100, 1000, 0x7fff_ff00]
    for i in 0..<5 {
      request(types[i], sector: 0, length: 512)
      Hostile.expect(Victim.blockStatus == BlockStatus.unsupported, "an unknown type must be UNSUPP")
    }
  }

  static func getID() {
    let lengths: InlineArray<4, UInt32> = [0, 1, 20, 512]
    for i in 0..<4 { request(BlockRequestType.getID, sector: 0, length: lengths[i]) }
  }

  /// DISCARD and WRITE_ZEROES with ranges that overflow; FLUSH with data.
  static func badRanges() {
    for type in 0..<2 {
      let kind = type == 0 ? BlockRequestType.discard : BlockRequestType.writeZeroes
      range(kind, UInt64.max, 0xffff_ffff)
      range(kind, Victim.sectors, 1)
      range(kind, Victim.sectors - 1, 0xffff_ffff)
      request(kind, sector: 0, length: 15)
      request(kind, sector: 0, length: 0)
    }
    request(BlockRequestType.flush, sector: 0, length: 512)
  }

  private static func range(_ type: UInt32, _ sector: UInt64, _ count: UInt32) {
    physical(data).storeBytes(
      of: BlockRangeSegment(sector: sector, sectorCount: count, flags: 0xffff_ffff), as: BlockRangeSegment.self)
    request(type, sector: 0, length: 16)
    Hostile.expect(Victim.blockStatus != BlockStatus.ok, "a range past the end succeeded")
  }
}
