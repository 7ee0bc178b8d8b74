import Testing

@testable import Replication

@Suite("Moderated receiving") struct ReceiveModerationTests {
  /// A thread that runs for so many microseconds at each reception, of which one is possible every 100: how long each pause is.
  private func pauses(of moderation: inout ReceiveModeration, running: UInt64, receptions: Int, from start: UInt64 = 0)
    -> [UInt64]
  {
    var (now, cpu) = (start, start)
    return (0..<receptions).map { _ in
      (now, cpu) = (now + 100_000, cpu + running * 1000)
      moderation.received()
      let pause = moderation.pause(now: now) { cpu }
      now += pause
      return pause
    }
  }

  @Test func cheapReceiving_isNeverPaused() {
    var moderation = ReceiveModeration()
    #expect(pauses(of: &moderation, running: 9, receptions: 1000).allSatisfy { $0 == 0 })
  }

  @Test func dearReceiving_comesEveryHalfMillisecond() {
    var moderation = ReceiveModeration()
    let pauses = pauses(of: &moderation, running: 50, receptions: 1000)
    #expect(pauses[..<63].allSatisfy { $0 == 0 })
    #expect(pauses[64...].allSatisfy { $0 == 400_000 })
  }

  @Test func rareReceptions_areNotPaused_thoughItIsOn() {
    var moderation = ReceiveModeration()
    _ = pauses(of: &moderation, running: 50, receptions: 100)
    moderation.received()
    #expect(moderation.pause(now: 1_000_000_000) { 0 } == 0)
    moderation.received()
    #expect(moderation.pause(now: 1_000_100_000) { 0 } == 400_000)
  }

  /// A thread whose peer has fallen silent sleeps until it speaks, however busy it was.
  @Test func nothingCame_isNotPausedAgain() {
    var moderation = ReceiveModeration()
    _ = pauses(of: &moderation, running: 50, receptions: 100)
    moderation.received()
    #expect(moderation.pause(now: 1_000_000_000) { 0 } == 0)
    moderation.received()
    #expect(moderation.pause(now: 1_000_100_000) { 0 } == 400_000)
    #expect(moderation.pause(now: 1_000_500_000) { 0 } == 0)
  }

  @Test func cheapAgain_endsIt() {
    var moderation = ReceiveModeration()
    _ = pauses(of: &moderation, running: 50, receptions: 128)
    let pauses = pauses(of: &moderation, running: 1, receptions: 200, from: 1_000_000_000)
    #expect(pauses[199] == 0 && pauses[1] > 0)
  }
}
