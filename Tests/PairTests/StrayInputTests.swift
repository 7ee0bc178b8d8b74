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

  /// Its word of a frame may be faster than the frame. Of the header in front nothing is known.
  @Test mutating func whatThePrimaryHadToo_isNotGivenTwice() {
    let frame = { (header: UInt8, byte: UInt8) in [UInt8](repeating: header, count: 12) + [byte] }
    drain(at: 10)
    tap.arrive(frame(0, 1))
    tap.arrive(frame(0, 2))
    drain(at: 20)
    #expect(strays.take(since: 10, without: [frame(9, 1)]) == [frame(0, 2)])
  }

  @Test mutating func flood_doesNotKeepAThread_andWhatIsLeftCountsFromTheVisitBefore() {
    drain(at: 10)
    for byte in 1...4 { tap.arrive([UInt8(byte)]) }
    var now: UInt64 = 20
    strays.drain(tap, within: 3) {
      now += 1
      return now
    }
    var soFar = strays
    #expect(soFar.take(since: 0) == [[1], [2], [3]])
    drain(at: 30)
    var all = strays
    #expect(all.take(since: 10).count == 4)
    #expect(strays.take(since: 11) == [], "they may have come right after the first visit")
  }
}
