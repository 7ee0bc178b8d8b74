import Testing

@testable import Pair

@Suite("Input of a secondary's tap") struct StrayInputTests {
  private let tap = FakeTap()
  private var strays = StrayInput()

  private mutating func drain(at time: UInt64) { strays.drain(tap) { time } }

  /// A frame that is read at 20 may have come at any time after the visit at 10.
  @Test mutating func frames_countFromTheVisitBeforeThem() {
    drain(at: 10)
    tap.arrive([1])
    drain(at: 20)
    tap.arrive([2])
    tap.arrive([3])
    drain(at: 30)
    var early = strays
    #expect(early.take(since: 10) == [[1], [2], [3]])
    #expect(strays.take(since: 11) == [[2], [3]], "the primary spoke at 11, and may have had the first")
    #expect(strays.take(since: 0) == [], "they are taken once")
  }

  @Test mutating func whatWaitedBeforeTheFirstVisit_isNobodys() {
    tap.arrive([1])
    drain(at: 10)
    #expect(strays.take(since: 1) == [])
  }

  @Test mutating func flood_keepsTheNewest() {
    drain(at: 10)
    for number in 0..<600 {
      tap.arrive([UInt8(number % 256), UInt8(number / 256)])
      drain(at: 20)
    }
    let kept = strays.take(since: 0)
    #expect(kept.count == 512 && kept.last == [87, 2])
  }
}
