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

  /// Ranges of one DISCARD or WRITE_ZEROES request at the most, as announced in the configuration space.
  static let maximumRanges = 16

  let operation: Operation
  /// Offset of the status byte in the writable part.
  let statusOffset: UInt64

  /// Bytes that it reads or writes.
  var size: Int {
    switch operation {
    case .read(_, let count), .write(_, let count): Int(count)
    default: 0
    }
  }

  /// Reads and checks the request in `chain`; nil when there is no room for a status, so that none can be given.
  init?(_ chain: DescriptorChain, memory: GuestMemory, capacity: UInt64, readOnly: Bool) {
    guard chain.writable.count >= 1 else { return nil }
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
      let zeroes = header.type == BlockRequestType.writeZeroes
      guard !readOnly, let ranges = Self.ranges(chain, memory, payload, capacity, zeroes: zeroes) else {
        operation = .refuse(BlockStatus.ioError)
        return
      }
      operation = zeroes ? .writeZeroes(ranges) : .discard(ranges)
    default: operation = .refuse(BlockStatus.unsupported)
    }
  }

  /// Byte position of a transfer of `count` bytes at `sector`; nil when it does not fit the disk.
  private static func range(_ sector: UInt64, _ count: UInt64, _ capacity: UInt64) -> UInt64? {
    let (position, overflow) = sector.multipliedReportingOverflow(by: BlockRequestHeader.sectorSize)
    guard !overflow, count % BlockRequestHeader.sectorSize == 0, position <= capacity, count <= capacity - position
    else { return nil }
    return position
  }

  private static func ranges(
    _ chain: DescriptorChain, _ memory: GuestMemory, _ payload: UInt64, _ capacity: UInt64, zeroes: Bool
  ) -> [Range]? {
    let size = UInt64(BlockRangeSegment.size)
    guard payload != 0, payload % size == 0, payload / size <= UInt64(maximumRanges) else { return nil }
    var ranges: [Range] = []
    for index in 0..<payload / size {
      guard
        let segment = memory.gather(
          BlockRangeSegment.self, chain.readable, offset: UInt64(BlockRequestHeader.size) + index * size),
        // §5.2.6.2: unmap only with WRITE_ZEROES, every other flag reserved.
        segment.flags & ~(zeroes ? BlockRangeSegment.unmap : 0) == 0
      else { return nil }
      let count = UInt64(segment.sectorCount) * BlockRequestHeader.sectorSize
      guard let position = range(segment.sector, count, capacity) else { return nil }
      if count != 0 { ranges.append(Range(position: position, count: count, unmap: segment.flags != 0)) }
    }
    return ranges
  }
}
