import Replication
import Testing

@testable import Pair

@Suite("Whether to look for early output") struct EarlyPolicyTests {
  /// Epochs of 100 frames with so many early, as many as wanted: whether each is followed by one in which it is looked.
  private func run(_ policy: inout EarlyPolicy, early: UInt64, held: UInt64? = nil, epochs: Int) -> [Bool] {
    (0..<epochs).map { _ in policy.epochEnded(early: early, held: held ?? 100 - early) == .on }
  }

  @Test(arguments: [50, 75, 100] as [UInt64]) func enough_isLookedForAlways(early: UInt64) {
    var policy = EarlyPolicy()
    #expect(run(&policy, early: early, epochs: 100) == [Bool](repeating: true, count: 100))
  }

  @Test func little_isLookedForLessAndLess() {
    var policy = EarlyPolicy()
    let looks = run(&policy, early: 49, epochs: 200)
    let tries = looks.indices.filter { looks[$0] }
    #expect(tries == [0, 1, 4, 9, 18, 35, 68, 101, 134, 167], "then 2, 4, 8, 16, 32 without")
  }

  @Test func whenThereIsMoreAgain_itIsLookedForAtOnce_andShortlyMissedTheNextTime() {
    var policy = EarlyPolicy()
    _ = run(&policy, early: 0, epochs: 68)
    let looks = run(&policy, early: 90, epochs: 10) + run(&policy, early: 0, epochs: 6)
    #expect(looks == [Bool](repeating: true, count: 12) + [false, false, true, false])
  }

  @Test func fewFrames_proveNothing() {
    var policy = EarlyPolicy()
    let looks = run(&policy, early: 0, held: 63, epochs: 50) + run(&policy, early: 0, held: 64, epochs: 3)
    #expect(looks == [Bool](repeating: true, count: 52) + [false])
  }

  /// The secondary may be an epoch behind: it keeps what its guest says from the one before.
  @Test func lookingAgain_isSaidAnEpochBefore() {
    var policy = EarlyPolicy()
    let searches = (0..<200).map { _ in policy.epochEnded(early: 49, held: 51) }
    for (before, after) in zip(searches, searches.dropFirst()) {
      #expect(after == .on ? before != .off : after == .soon ? before == .off : before != .soon)
    }
    #expect(Set(searches) == [.on, .off, .soon])
  }
}
