internal import GuestMemory
internal import VirtioLayout

/// One block request, checked against the disk (virtio 1.2 §5.2.6): everything the driver said, read once.
struct BlockRequest: Sendable {
  enum Operation: Sendable, Equatable {
    case read(position: UInt64, count: UInt64)
    /// Data starts behind the header in the readable part.
    case write(position: UInt64, count: UInt64)
    case flush
    case identify
    case discard([Range])
    case writeZeroes([Range])
    /// Answered at once with this status.
    case refuse(UInt8)
  }

  struct Range: Sendable, Equatable {
    let position: UInt64
    let count: UInt64
    let unmap: Bool
  }

  /// What one request may ask for at the most, as announced in the configuration space: who pauses or resets the machine waits
  /// for its end, whatever the medium takes.
  enum Limit {
    /// `seg_max` segments of `size_max` bytes stay below it.
    static let transfer: UInt64 = 16 << 20
    static let discardRanges: UInt64 = 16
    static let discardRange: UInt64 = 128 << 20
    /// Where the file system can't zero a range, all of it is written.
    static let zeroesRanges: UInt64 = 1
    static let zeroesRange: UInt64 = 16 << 20
  }

  let operation: Operation
  /// Done only when it is on stable storage: its driver knows no FLUSH (§5.2.6.2).
  let writesThrough: Bool
  /// Offset of the status byte in the writable part.
  let statusOffset: UInt64

  /// Bytes that it reads, writes, discards or zeroes.
  var size: Int {
    switch operation {
    case .read(_, let count), .write(_, let count): Int(count)
    case .discard(let ranges), .writeZeroes(let ranges): ranges.reduce(0) { $0 + Int($1.count) }
    case .flush, .identify, .refuse: 0
    }
  }

  var changesDisk: Bool {
    switch operation {
    case .write, .discard, .writeZeroes: true
    case .read, .flush, .identify, .refuse: false
    }
  }

  /// Reads and checks the request in `chain`; nil when there is no room for a status, so that none can be given.
  /// - Parameter features: what its driver has agreed to.
  init?(_ chain: DescriptorChain, memory: GuestMemory, capacity: UInt64, readOnly: Bool, features: UInt64) {
    guard chain.writable.count >= 1 else { return nil }
    writesThrough = features & BlockFeature.flush == 0
    statusOffset = chain.writable.count - 1
    guard let header = memory.gather(BlockRequestHeader.self, chain.readable) else {
      operation = .refuse(BlockStatus.ioError)
      return
    }
    let payload = chain.readable.count - UInt64(BlockRequestHeader.size)
    switch header.type {
    case BlockRequestType.read:
      operation =
        Self.range(header.sector, statusOffset, capacity).map { .read(position: $0, count: chain.writable.count - 1) }
        ?? .refuse(BlockStatus.ioError)
    case BlockRequestType.write:
      let position = readOnly ? nil : Self.range(header.sector, payload, capacity)
      operation = position.map { .write(position: $0, count: payload) } ?? .refuse(BlockStatus.ioError)
    case BlockRequestType.flush: operation = .flush
    case BlockRequestType.getID: operation = .identify
    case BlockRequestType.discard, BlockRequestType.writeZeroes:
      operation =
        readOnly
        ? .refuse(BlockStatus.ioError)
        : Self.ranges(
          chain, memory, payload, capacity, zeroes: header.type == BlockRequestType.writeZeroes)
    default: operation = .refuse(BlockStatus.unsupported)
    }
  }

  /// Byte position of `count` bytes at `sector`; nil when they do not fit the disk, or are more than `limit`.
  private static func range(
    _ sector: UInt64, _ count: UInt64, _ capacity: UInt64, limit: UInt64 = Limit.transfer
  ) -> UInt64? {
    let (position, overflow) = sector.multipliedReportingOverflow(by: BlockRequestHeader.sectorSize)
    guard !overflow, count <= limit, count % BlockRequestHeader.sectorSize == 0, position <= capacity,
      count <= capacity - position
    else { return nil }
    return position
  }

  private static func ranges(
    _ chain: DescriptorChain, _ memory: GuestMemory, _ payload: UInt64, _ capacity: UInt64, zeroes: Bool
  ) -> Operation {
    let size = UInt64(BlockRangeSegment.size)
    guard payload != 0, payload % size == 0,
      payload / size <= (zeroes ? Limit.zeroesRanges : Limit.discardRanges)
    else { return .refuse(BlockStatus.ioError) }
    var ranges: [Range] = []
    var fits = true
    for index in 0..<payload / size {
      guard
        let segment = memory.gather(
          BlockRangeSegment.self, chain.readable, offset: UInt64(BlockRequestHeader.size) + index * size)
      else { return .refuse(BlockStatus.ioError) }
      // §5.2.6.2: unmap only with WRITE_ZEROES, every other flag reserved; whatever else is wrong.
      guard segment.flags & ~(zeroes ? BlockRangeSegment.unmap : 0) == 0 else {
        return .refuse(BlockStatus.unsupported)
      }
      let count = UInt64(segment.sectorCount) * BlockRequestHeader.sectorSize
      let limit = zeroes ? Limit.zeroesRange : Limit.discardRange
      guard let position = range(segment.sector, count, capacity, limit: limit) else {
        fits = false
        continue
      }
      if count != 0 { ranges.append(Range(position: position, count: count, unmap: segment.flags != 0)) }
    }
    guard fits else { return .refuse(BlockStatus.ioError) }
    return zeroes ? .writeZeroes(ranges) : .discard(ranges)
  }
}
