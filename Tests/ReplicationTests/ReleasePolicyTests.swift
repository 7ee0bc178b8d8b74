import Replication
import Testing

/// The rules of what leaves early, by the letters of docs/colo-plus-plus.md, each with a case that breaks without it:
///
/// | | here | elsewhere |
/// | --- | --- | --- |
/// | (a) the input it stems from | "(a)" | `OutputGateTests.early_leavesWithTheInputItStemsFrom…` |
/// | (b) its sources are in every checkpoint | "(b)" | `SourcePagesTests`: written in this epoch and read back, dirtied between submit and look-up; `DeviceSourceTests`: written by the VMM |
/// | (c) it confirms no write | "(c)" | `ReplySourcesTests.notTold_isNot` |
/// | (d) nothing of its flow is held before it | | `OutputGateTests.early_doesNotOvertakeInItsFlow` |
/// | (e) the secondary is told first, and listens | | `OutputGateTests.early_isNotSeenBeforeItIsTold`, `EarlyTellingTests`; the primary that dies in between: `EarlyWatchTests`, `Integration.EarlyOutput` |
/// | distrust after a difference | "distrust" | `OutputGateTests.contradicted…` |
@Suite("Release rule") struct ReleasePolicyTests {
  /// One row of the rule's table: a frame of epoch 5, given 10 frames of input.
  struct Row: Sendable, CustomTestStringConvertible {
    let why: String
    let mode: ReplicationMode
    var comparison = OutputFacts.Comparison.pending
    var synchronisedBy: UInt64?
    var isDistrusted = false
    let received: UInt64
    let acknowledged: UInt64
    let verdict: ReleasePolicy.Verdict
    var testDescription: String { "\(mode): \(why)" }
  }

  static let rows = [
    Row(why: "unprotected", mode: .none, received: 0, acknowledged: 0, verdict: .release),
    Row(why: "its checkpoint is not received", mode: .remus, received: 4, acknowledged: 10, verdict: .hold),
    Row(why: "its checkpoint is received", mode: .remus, received: 5, acknowledged: 10, verdict: .release),
    Row(why: "a later checkpoint covers it too", mode: .remus, received: 6, acknowledged: 99, verdict: .release),
    Row(
      why: "equal output does not count", mode: .remus, comparison: .equal, received: 4, acknowledged: 10,
      verdict: .hold),
    Row(why: "input missing, whatever the checkpoint", mode: .remus, received: 5, acknowledged: 9, verdict: .hold),
    Row(why: "nothing to compare with yet", mode: .colo, received: 4, acknowledged: 10, verdict: .hold),
    Row(why: "the same from both", mode: .colo, comparison: .equal, received: 4, acknowledged: 10, verdict: .release),
    Row(
      why: "the same before any checkpoint", mode: .colo, comparison: .equal, received: 0, acknowledged: 10,
      verdict: .release),
    Row(
      why: "equal, but an ACK of input the other lacks", mode: .colo, comparison: .equal, received: 4, acknowledged: 9,
      verdict: .hold),
    Row(
      why: "different", mode: .colo, comparison: .different, received: 4, acknowledged: 10, verdict: .holdForCheckpoint),
    Row(
      why: "different, then covered", mode: .colo, comparison: .different, received: 5, acknowledged: 10,
      verdict: .release),
    Row(why: "silent secondary, then covered", mode: .colo, received: 5, acknowledged: 10, verdict: .release),
    Row(why: "covered, but an ACK of input the other lacks", mode: .colo, received: 5, acknowledged: 9, verdict: .hold),
    Row(
      why: "its sources are the secondary's", mode: .coloPlusPlus, synchronisedBy: 4, received: 4, acknowledged: 10,
      verdict: .releaseEarly),
    // The client would hear that its request has come; the survivor would not have it, and nobody would send it again.
    Row(
      why: "(a) sources are there, the request it acknowledges is not", mode: .coloPlusPlus, synchronisedBy: 4,
      received: 4,
      acknowledged: 9, verdict: .hold),
    // The client would read what a survivor that goes on from checkpoint 3 has never had.
    Row(
      why: "(b) a source changed in a checkpoint that is on its way", mode: .coloPlusPlus, synchronisedBy: 4,
      received: 3,
      acknowledged: 10, verdict: .hold),
    Row(
      why: "(b) … and it is received between queueing and decision", mode: .coloPlusPlus, synchronisedBy: 4,
      received: 4, acknowledged: 10,
      verdict: .releaseEarly),
    // "STORED" is constant text, the same in both memories, and still says that a write is safe.
    Row(why: "(c) confirms a write: not marked", mode: .coloPlusPlus, received: 4, acknowledged: 10, verdict: .hold),
    Row(
      why: "made of nothing that could change", mode: .coloPlusPlus, synchronisedBy: 0, received: 0, acknowledged: 10,
      verdict: .releaseEarly),
    Row(
      why: "covered meanwhile: nothing is early any more", mode: .coloPlusPlus, synchronisedBy: 4, received: 5,
      acknowledged: 10, verdict: .release),
    Row(
      why: "the same from both, whatever its sources", mode: .coloPlusPlus, comparison: .equal, received: 4,
      acknowledged: 10, verdict: .release),
    Row(
      why: "the secondary has said something else by now", mode: .coloPlusPlus, comparison: .different,
      synchronisedBy: 4, received: 4, acknowledged: 10, verdict: .holdForCheckpoint),
    // The survivor would reset the connection; what is said twice wrong is no better.
    Row(
      why: "distrust: something wrong left its flow early", mode: .coloPlusPlus, synchronisedBy: 4, isDistrusted: true,
      received: 4,
      acknowledged: 10, verdict: .hold),
    Row(
      why: "distrust: … and the checkpoint after that is received", mode: .coloPlusPlus, synchronisedBy: 4,
      isDistrusted: true,
      received: 5, acknowledged: 10, verdict: .release),
    Row(
      why: "distrust: … or the secondary has said this as well", mode: .coloPlusPlus, comparison: .equal,
      synchronisedBy: 4,
      isDistrusted: true, received: 4, acknowledged: 10, verdict: .release),
    Row(why: "sources do not count", mode: .colo, synchronisedBy: 0, received: 4, acknowledged: 10, verdict: .hold),
    Row(why: "sources do not count", mode: .remus, synchronisedBy: 0, received: 4, acknowledged: 10, verdict: .hold),
  ]

  @Test(arguments: rows) func verdict(row: Row) {
    let facts = OutputFacts(
      epoch: 5, inputGiven: 10, comparison: row.comparison, synchronisedBy: row.synchronisedBy)
    let secondary = SecondaryProgress(received: row.received, inputAcknowledged: row.acknowledged)
    #expect(
      ReleasePolicy.verdict(facts, mode: row.mode, secondary: secondary, isDistrusted: row.isDistrusted) == row.verdict)
  }

  /// What is released stays released: progress of the secondary never turns a release into a hold.
  @Test(arguments: ReplicationMode.allCases) func release_isMonotonic(mode: ReplicationMode) {
    for comparison in [OutputFacts.Comparison.pending, .equal, .different] {
      for epoch in 1...4 as ClosedRange<UInt64> {
        for given in 0...4 as ClosedRange<UInt64> {
          let facts = OutputFacts(epoch: epoch, inputGiven: given, comparison: comparison, synchronisedBy: epoch - 1)
          for received in 0...4 as ClosedRange<UInt64> {
            for acknowledged in 0...4 as ClosedRange<UInt64> {
              let now = SecondaryProgress(received: received, inputAcknowledged: acknowledged)
              let leaves: [ReleasePolicy.Verdict] = [.release, .releaseEarly]
              guard leaves.contains(ReleasePolicy.verdict(facts, mode: mode, secondary: now)) else { continue }
              for later in [
                SecondaryProgress(received: received + 1, inputAcknowledged: acknowledged),
                SecondaryProgress(received: received, inputAcknowledged: acknowledged + 1),
              ] { #expect(leaves.contains(ReleasePolicy.verdict(facts, mode: mode, secondary: later))) }
            }
          }
        }
      }
    }
  }
}
