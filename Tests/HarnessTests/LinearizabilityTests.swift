import Harness
import Testing

@Suite struct Linearizability {
  private func set(_ value: Int, _ begin: UInt64, _ end: UInt64?, client: Int = 0, number: Int = 0) -> Operation {
    Operation(client: client, number: number, .set, argument: value, begin: begin, end: end)
  }
  private func get(_ value: Int?, _ begin: UInt64, _ end: UInt64, client: Int = 1, number: Int = 0) -> Operation {
    Operation(client: client, number: number, .get, result: value, begin: begin, end: end)
  }
  private func incr(_ value: Int?, _ begin: UInt64, _ end: UInt64?, client: Int = 0, number: Int = 0) -> Operation {
    Operation(client: client, number: number, .incr, result: value, begin: begin, end: end)
  }
  private func isPossible(_ operations: [Operation]) -> Bool { History(operations).check().isEmpty }

  // MARK: What must be accepted

  @Test func oneAfterTheOther() {
    #expect(isPossible([get(nil, 0, 1), set(5, 2, 3), get(5, 4, 5, number: 1), incr(6, 6, 7, number: 1)]))
  }

  @Test func concurrentWrites_eitherOrder() {
    let writes = [set(1, 0, 10), set(2, 0, 10, client: 2)]
    #expect(isPossible(writes + [get(1, 11, 12)]))
    #expect(isPossible(writes + [get(2, 11, 12)]))
  }

  @Test func writeWithoutReply_mayHaveHappenedOrNotOrLater() {
    #expect(isPossible([set(1, 0, 1), set(2, 2, nil, client: 2), get(1, 3, 4)]))
    #expect(isPossible([set(1, 0, 1), set(2, 2, nil, client: 2), get(2, 3, 4)]))
    #expect(isPossible([set(1, 0, 1), set(2, 2, nil, client: 2), get(1, 3, 4), get(2, 5, 6, number: 1)]))
  }

  @Test func incrWithoutReply_countsOnceAtTheMost() {
    #expect(isPossible([incr(1, 0, 1), incr(nil, 2, nil, client: 2), incr(2, 3, 4, client: 3)]))
    #expect(isPossible([incr(1, 0, 1), incr(nil, 2, nil, client: 2), incr(3, 3, 4, client: 3)]))
  }

  @Test func keysAreApart() {
    var other = get(nil, 4, 5)
    other.key = "other"
    #expect(isPossible([set(1, 0, 1), other]))
  }

  @Test func manyClients_areDecided() {
    // Sixteen clients, all concurrent in each of a hundred rounds, replies in an order that is not that of the ends.
    var operations: [Operation] = []
    for round in 0..<100 {
      for client in 0..<16 {
        let place = (client * 7 + round) % 16
        operations.append(
          incr(
            round * 16 + place + 1, UInt64(round * 100), UInt64(round * 100 + 50 + client), client: client,
            number: round))
      }
    }
    #expect(isPossible(operations))
    operations[800].result = 1
    #expect(!isPossible(operations))
  }

  // MARK: What must be refused

  @Test func lostAcknowledgedWrite() { #expect(!isPossible([set(1, 0, 1), set(2, 2, 3, number: 1), get(1, 4, 5)])) }

  @Test func acknowledgedWriteGoneAltogether() { #expect(!isPossible([set(1, 0, 1), get(nil, 2, 3)])) }

  @Test func staleRead_afterAnotherHasSeenTheNewValue() {
    let writes = [set(1, 0, 1), set(2, 2, 20, number: 1)]
    #expect(!isPossible(writes + [get(2, 3, 4), get(1, 5, 6, client: 2)]))
    #expect(isPossible(writes + [get(1, 3, 4), get(2, 5, 6, client: 2)]))
  }

  @Test func valueNeverWritten() { #expect(!isPossible([set(1, 0, 1), get(7, 2, 3)])) }

  @Test func incrThatRepeats() { #expect(!isPossible([incr(1, 0, 1), incr(1, 2, 3, number: 1)])) }

  @Test func incrThatSkips() { #expect(!isPossible([incr(1, 0, 1), incr(3, 2, 3, number: 1)])) }

  @Test func incrWithoutReply_cannotCountTwice() {
    #expect(!isPossible([incr(1, 0, 1), incr(nil, 2, nil, client: 2), incr(4, 3, 4, client: 3)]))
  }

  @Test func pipelinedOperationsOfAClient_keepTheirOrder() {
    // Both were sent at once and answered at once; only the order of sending forbids it.
    #expect(!isPossible([set(1, 0, 10, number: 0), set(2, 0, 10, number: 1), get(1, 11, 12)]))
    #expect(isPossible([set(1, 0, 10, number: 0), set(2, 0, 10, client: 2, number: 1), get(1, 11, 12)]))
  }

  @Test func writeBeforeItsRequest() { #expect(!isPossible([get(1, 0, 1), set(1, 2, 3)])) }
}
