import Devices
import Replication
import Testing

@testable import Pair

/// A secondary that was asked to take over, until its primary, which lives, has heard of it.
@Suite("Handing over") struct HandingOverTests {
  /// The primary lets frames out until it hears the term: what it tells of them counts, and so does input.
  @Test func untilThePrimaryHasHeard_whatItTells_isKept() throws {
    let (primary, secondary) = try channels()
    let side = SecondarySide(refreshes: false, beats: try beatPaths().listening)
    side.early.begin(secondary)
    let log = InputLog()
    try log.append(1, [1])
    var teller = EarlyTeller(primary)
    let told = Segment(sequence: 1000, text: "one").bytes
    let output = unsafe told.withUnsafeBytes { unsafe teller.output($0, header: NetHeader.size, epoch: 1) }
    try primary.send(.input(card: 0, number: 2, frame: [2]))
    try primary.send(.heartbeat(term: 1, time: 0))
    try primary.send(.early(card: 0, epoch: 1, outputs: [try #require(output)]))
    primary.close()
    side.awaitEnd(of: secondary, log)
    #expect(log.received == 2)
    let other = Segment(sequence: 1000, text: "two").bytes
    _ = side.early.said(other, isMarked: true)
    #expect(side.early.takeOver(log).count == 1, "a connection on which something else was said is reset")
    #expect(side.early.counts.reset == 1)
  }
}
