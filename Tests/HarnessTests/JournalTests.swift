import Foundation
import Harness
import Testing

@Suite struct Journals {
  private let folder = TestFolder()
  private var disk: URL { folder.url.appending(path: "disk") }

  /// A block as the lab guest's journal writes it.
  private func block(_ number: UInt64, _ generation: UInt64) -> [UInt8] {
    (0..<64).flatMap { record -> [UInt8] in
      var hash: UInt64 = 0x4b43_4f4c_4242_414c ^ number &* 0x9e37_79b9_7f4a_7c15
      hash = (hash ^ generation) &* 0xbf58_476d_1ce4_e5b9
      hash = (hash ^ UInt64(record) ^ (hash >> 29)) &* 0x94d0_49bb_1331_11eb
      let sum = hash ^ (hash >> 32)
      let words = [0x4b43_4f4c_4242_414c, number, generation, UInt64(record), sum, ~sum, sum &* 3, sum &* 5]
      return words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * UInt64($0))) } }
    }
  }

  private func write(_ generation: Int, end: UInt64?) -> Harness.Operation {
    Harness.Operation(client: 0, number: generation, key: "block1", .write, argument: generation, begin: 0, end: end)
  }

  private func failures(_ contents: [UInt8], _ writes: [Harness.Operation]) throws -> [String] {
    try Data([UInt8](repeating: 0, count: 4096) + contents).write(to: disk)
    return try JournalCheck.check(disk: disk, against: History(writes))
  }

  @Test func newestAcknowledged_orNewerThatWasAskedFor() throws {
    let writes = [write(5, end: 1), write(6, end: nil)]
    #expect(try failures(block(1, 5), writes) == [])
    #expect(try failures(block(1, 6), writes) == [])
  }

  @Test func lostWrite() throws { #expect(try failures(block(1, 5), [write(5, end: 1), write(6, end: 2)]).count == 1) }

  @Test func blockNeverWritten_isLostToo() throws {
    #expect(try failures([UInt8](repeating: 0, count: 4096), [write(5, end: 1)]).count == 1)
    #expect(try failures([UInt8](repeating: 0, count: 4096), [write(5, end: nil)]) == [])
  }

  @Test func tornBlock() throws {
    let torn = Array(block(1, 5)[..<2048] + block(1, 6)[2048...])
    #expect(try failures(torn, [write(5, end: 1), write(6, end: nil)]) == ["block1 is torn"])
  }

  @Test func misplacedBlock() throws { #expect(try failures(block(2, 5), [write(5, end: 1)]).count == 1) }

  @Test func generationThatNobodyWrote() throws { #expect(try failures(block(1, 9), [write(5, end: 1)]).count == 1) }
}
