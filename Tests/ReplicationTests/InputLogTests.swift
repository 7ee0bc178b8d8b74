import Testing

@testable import Replication

@Suite("Input log") struct InputLogTests {
  let log = InputLog(byteLimit: 1000)

  private func next() -> [UInt8]? {
    var buffer = [UInt8](repeating: 0, count: 64)
    let count = unsafe buffer.withUnsafeMutableBytes { unsafe log.next(into: $0) }
    return count == 0 ? nil : Array(buffer[..<count])
  }

  @Test func frames_areGivenInOrderOnce() throws {
    for number in 1...5 as ClosedRange<UInt64> { try log.append(number, [UInt8(number)]) }
    #expect(log.received == 5)
    for number in 1...5 as ClosedRange<UInt8> { #expect(next() == [number]) }
    #expect(next() == nil && log.isEmpty)
  }

  @Test func rewind_givesAgainWhatTheCheckpointDoesNotContain() throws {
    for number in 1...5 as ClosedRange<UInt64> { try log.append(number, [UInt8(number)]) }
    for _ in 1...5 { _ = next() }
    try log.rewind(toCheckpointAfter: 2)
    #expect(log.received == 5, "what was acknowledged stays acknowledged")
    for number in 3...5 as ClosedRange<UInt8> { #expect(next() == [number]) }
    try log.rewind(toCheckpointAfter: 2)
    #expect(next() == [3])
  }

  /// The checkpoint is ahead of the secondary's own guest: what it contains is not given any more.
  @Test func rewind_canGoForward() throws {
    for number in 1...5 as ClosedRange<UInt64> { try log.append(number, [UInt8(number)]) }
    _ = next()
    try log.rewind(toCheckpointAfter: 4)
    #expect(next() == [5])
  }

  @Test func gaps_repetitions_andImpossibleCheckpoints_areRefused() throws {
    try log.append(1, [1])
    #expect(throws: InputLog.Refusal.outOfOrder(expected: 2, got: 3)) { try log.append(3, [3]) }
    #expect(throws: InputLog.Refusal.outOfOrder(expected: 2, got: 1)) { try log.append(1, [1]) }
    #expect(throws: InputLog.Refusal.unknownInput(given: 2)) { try log.rewind(toCheckpointAfter: 2) }
    try log.rewind(toCheckpointAfter: 1)
    #expect(throws: InputLog.Refusal.unknownInput(given: 0)) { try log.rewind(toCheckpointAfter: 0) }
    #expect(log.received == 1)
  }

  @Test func size_isBounded_andMadeFreeByACheckpoint() throws {
    try log.append(1, [UInt8](repeating: 0, count: 900))
    #expect(throws: InputLog.Refusal.full) { try log.append(2, [UInt8](repeating: 0, count: 101)) }
    try log.rewind(toCheckpointAfter: 1)
    try log.append(2, [UInt8](repeating: 0, count: 1000))
    log.trim()
    #expect(throws: InputLog.Refusal.full) { try log.append(3, [0]) }
    try log.rewind(toCheckpointAfter: 2)
    log.trim()
    #expect(log.keptBytes == 0)
    try log.append(3, [3])
    #expect(log.sinceCheckpoint == [[3]])
  }

  @Test func oversizedFrame_isPassedOver() throws {
    try log.append(1, [UInt8](repeating: 1, count: 65))
    try log.append(2, [2])
    #expect(next() == [2])
    #expect(log.given == 2)
  }

  @Test func longLife_keepsItsOrder() throws {
    var given: UInt64 = 0
    for number in 1...20_000 as ClosedRange<UInt64> {
      try log.append(number, [UInt8(truncatingIfNeeded: number)])
      #expect(next() == [UInt8(truncatingIfNeeded: number)])
      if number % 7 == 0 {
        given = number - number % 3
        try log.rewind(toCheckpointAfter: given)
        if number % 2 == 0 { log.trim() }
        while let frame = next() {
          given += 1
          #expect(frame == [UInt8(truncatingIfNeeded: given)])
        }
        #expect(given == number)
      }
    }
  }
}
