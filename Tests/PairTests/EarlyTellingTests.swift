import Devices
import Replication
import Synchronization
import Testing

@testable import Pair

/// What a primary tells its secondary before it lets it out early.
@Suite("Telling what leaves early") struct EarlyTellingTests {
  /// Long after the machine was started.
  private let time = Box(Mutex<UInt64>(10_000_000_000))
  private let frame = Segment(text: "one").bytes

  private func tell(_ telling: EarlyTelling) -> UInt64? {
    unsafe frame.withUnsafeBytes { unsafe telling.tell($0, epoch: 1) }
  }

  private func pass(_ milliseconds: UInt64) { time.value.withLock { $0 += milliseconds * 1_000_000 } }
  private var now: UInt64 { time.value.withLock { $0 } }

  @Test func told_isOnItsWay_whenTheKernelHasIt() throws {
    let (primary, secondary) = try channels()
    let telling = EarlyTelling(clock: { [time] in time.value.withLock { $0 } })
    telling.begin(primary)
    telling.heard(now)
    let told = try #require(tell(telling))
    #expect(telling.isOnItsWay(told))
    guard case .early(_, 1, let outputs) = try secondary.receive(within: 1000) else { return #expect(Bool(false)) }
    #expect(outputs.count == 1 && outputs[0].sequence == 1000)
    telling.end()
    #expect(telling.isOnItsWay(told + 1), "nobody is left to be told")
  }

  /// A primary that was stopped wakes up and does not know yet that it was replaced: the secondary bears 60 ms of silence.
  @Test func secondaryThatWasNotHeardForLong_mayHaveTakenOver_nothingIsEarly() throws {
    let (primary, secondary) = try channels()
    let telling = EarlyTelling(clock: { [time] in time.value.withLock { $0 } })
    telling.begin(primary)
    #expect(tell(telling) == nil, "it has said nothing yet")
    let before = now
    telling.heard(before)
    let told = try #require(tell(telling))
    pass(200)
    #expect(!telling.isOnItsWay(told) && tell(telling) == nil)
    telling.heard(before)
    #expect(tell(telling) == nil, "it answers what this side said before it was stopped")
    telling.heard(now + 1)
    #expect(tell(telling) == nil, "nobody has heard what is not said yet")
    telling.heard(now)
    #expect(telling.isOnItsWay(told) && tell(telling) != nil)
    pass(49)
    #expect(tell(telling) != nil)
    _ = secondary
  }

  /// A secondary gives back the time of the last sign of life that it has read; a primary sends its own.
  @Test(arguments: [Role.alone, .joining]) func heartbeat_carriesThePrimarysTime(role: Role) throws {
    let (mine, other) = try channels()
    let peer = PeerWatch(role: role)
    peer.begin(mine, try beatPaths().listening)
    peer.heard(42)
    let sender = try HostThread.start(name: "send") { _ = mine.runSender() }
    let ticker = try HostThread.start(name: "tick") { peer.run(mine) {} }
    guard case .heartbeat(1, let time) = try other.receive(within: 5000) else { return #expect(Bool(false)) }
    #expect(role == .joining ? time == 42 : time > 1_000_000)
    peer.end()
    ticker.join()
    mine.close()
    sender.join()
  }
}
