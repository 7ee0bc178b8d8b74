import Testing

@testable import Pair

@Suite("Whether to look for early output") struct EarlyPolicyTests {
  /// Epochs of 100 frames with so many early, as many as wanted: whether each is followed by one in which it is looked.
  private func run(_ policy: inout EarlyPolicy, early: UInt64, held: UInt64? = nil, epochs: Int) -> [Bool] {
    (0..<epochs).map { _ in policy.epochEnded(early: early, held: held ?? 100 - early) }
  }

  @Test(arguments: [50, 75, 100] as [UInt64]) func enough_isLookedForAlways(early: UInt64) {
    var policy = EarlyPolicy()
    #expect(run(&policy, early: early, epochs: 100) == [Bool](repeating: true, count: 100))
  }

  @Test func little_isLookedForLessAndLess() {
    var policy = EarlyPolicy()
    let looks = run(&policy, early: 49, epochs: 200)
    let tries = looks.indices.filter { looks[$0] }
    #expect(tries == [2, 7, 16, 33, 66, 99, 132, 165, 198], "2, 4, 8, 16 and 32 epochs without")
  }

  @Test func whenThereIsMoreAgain_itIsLookedForAtOnce_andShortlyMissedTheNextTime() {
    var policy = EarlyPolicy()
    _ = run(&policy, early: 0, epochs: 67)
    let looks = run(&policy, early: 90, epochs: 10) + run(&policy, early: 0, epochs: 3)
    #expect(looks == [Bool](repeating: true, count: 10) + [false, false, true])
  }

  @Test func fewFrames_proveNothing() {
    var policy = EarlyPolicy()
    let looks = run(&policy, early: 0, held: 63, epochs: 50) + run(&policy, early: 0, held: 64, epochs: 1)
    #expect(looks == [Bool](repeating: true, count: 50) + [false])
  }
}
