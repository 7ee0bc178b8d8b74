import Testing

@testable import Pair

/// How many CPUs a secondary's guest is left, by how long the primary's output waits.
@Suite("Shrink policy") struct ShrinkPolicyTests {
  /// One window's epochs, of a guest with 8 CPUs; how many are left after it.
  private func window(_ policy: inout ShrinkPolicy, wait: UInt32, of cpus: Int = 8) -> Int {
    for _ in 0..<ShrinkPolicy.window { _ = policy.epochEnded(wait: wait, of: cpus) }
    return policy.active
  }

  @Test func fixedNumber_stays() {
    var policy = ShrinkPolicy(2)
    for wait in [0, 6000, 1_000_000] as [UInt32] {
      let active = window(&policy, wait: wait)
      #expect(active == 2)
    }
  }

  @Test func moreThatHelp_areKept() {
    var policy = ShrinkPolicy(nil)
    // Late; tried, better but late; kept, and more tried; and so on, up to all.
    let active = ([40_000, 20_000, 20_000, 10_000, 10_000, 6000, 6000] as [UInt32]).map {
      window(&policy, wait: $0, of: 6)
    }
    #expect(active == [2, 2, 4, 4, 6, 6, 6])
  }

  /// On a host that is busy to the last, more CPUs make it later still.
  @Test func moreThatDoNotHelp_areTakenBack_andTriedMoreSeldom() {
    var policy = ShrinkPolicy(nil)
    var tries: [Int] = []
    for number in 0..<200 where window(&policy, wait: policy.active == 1 ? 10_000 : 9000) == 2 { tries.append(number) }
    let gaps = zip(tries.dropFirst(), tries).map { $0 - $1 }
    #expect(gaps == [6, 11, 21, 41, 81])
  }

  /// Windows without waiting until there is one CPU less.
  private func calm(_ policy: inout ShrinkPolicy) -> Int {
    let before = policy.active
    var windows = 1
    while window(&policy, wait: 0) == before, windows < 1000 { windows += 1 }
    return windows
  }

  @Test func calm_takesThemAway_lessOftenEachTimeItWasWrong() {
    var policy = ShrinkPolicy(nil)
    var windows: [Int] = []
    for _ in 0..<8 {
      let raised = [window(&policy, wait: 6000), window(&policy, wait: 0)]
      #expect(raised == [2, 2])
      windows.append(calm(&policy))
      #expect(policy.active == 1)
    }
    #expect(windows == [5, 10, 20, 40, 80, 160, 320, 320])
  }

  @Test func neitherLateNorPrompt_changesNothing() {
    var policy = ShrinkPolicy(nil)
    let raised = [window(&policy, wait: 6000), window(&policy, wait: 0)]
    #expect(raised == [2, 2])
    for _ in 0..<20 {
      let active = [0, 0, 0, ShrinkPolicy.prompt].map { window(&policy, wait: $0) }
      #expect(active == [2, 2, 2, 2])
    }
  }
}
