import Foundation

/// Whether a disk holds what the lab guest's journal service has said to be written. Its blocks of 4 KiB are records of 64 bytes:
/// magic, block number, generation, the record's place, and sums of them.
public struct JournalCheck {
  static let blockSize = 4096
  private static let magic: UInt64 = 0x4b43_4f4c_4242_414c  // "LABBLOCK"

  /// What is wrong: each block must be whole, and as new as the newest write that was acknowledged; newer ones that were
  /// asked for may be there.
  public static func check(disk: URL, against history: History) throws -> [String] {
    let file = try FileHandle(forReadingFrom: disk)
    defer { try? file.close() }
    var failures: [String] = []
    for (key, writes) in Dictionary(grouping: history.operations.filter { $0.op == .write }, by: \.key) {
      guard let block = UInt64(key.dropFirst("block".count)) else { continue }
      let acknowledged = writes.filter { $0.end != nil }.compactMap(\.argument).max()
      try file.seek(toOffset: block * UInt64(blockSize))
      let bytes = Array(try file.read(upToCount: blockSize) ?? Data())
      switch generation(of: bytes, block: block) {
      case .torn: failures.append("\(key) is torn")
      case .empty:
        if let acknowledged { failures.append("\(key) is empty, and generation \(acknowledged) was acknowledged") }
      case .whole(let generation):
        if let acknowledged, generation < acknowledged {
          failures.append("\(key) has generation \(generation), and \(acknowledged) was acknowledged")
        } else if !writes.contains(where: { $0.argument == generation }) {
          failures.append("\(key) has generation \(generation), which nobody wrote")
        }
      }
    }
    return failures
  }

  private enum Contents {
    case empty, torn
    case whole(Int)
  }

  private static func generation(of bytes: [UInt8], block: UInt64) -> Contents {
    guard bytes.count == blockSize else { return .torn }
    guard bytes.contains(where: { $0 != 0 }) else { return .empty }
    func word(_ index: Int) -> UInt64 {
      (0..<8).reduce(0) { $0 | UInt64(bytes[index * 8 + $1]) << (8 * UInt64($1)) }
    }
    let generation = word(2)
    for record in 0..<blockSize / 64 {
      let sum = sum(block, generation, UInt64(record))
      let expected = [magic, block, generation, UInt64(record), sum, ~sum, sum &* 3, sum &* 5]
      guard (0..<8).allSatisfy({ word(record * 8 + $0) == expected[$0] }) else { return .torn }
    }
    return .whole(Int(generation))
  }

  private static func sum(_ block: UInt64, _ generation: UInt64, _ place: UInt64) -> UInt64 {
    var hash = magic ^ block &* 0x9e37_79b9_7f4a_7c15
    hash = (hash ^ generation) &* 0xbf58_476d_1ce4_e5b9
    hash = (hash ^ place ^ (hash >> 29)) &* 0x94d0_49bb_1331_11eb
    return hash ^ (hash >> 32)
  }
}
