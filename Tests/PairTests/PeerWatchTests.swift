import Replication
import Testing

@testable import Pair

@Suite("Word of a peer") struct PeerWatchTests {
  /// The kernel tells of a refusal first, and the beats that came before it lie behind.
  @Test func leaving_isHeardBehindARefusal() throws {
    let (mine, theirs) = try channels()
    let (listening, calling) = try beatPaths()
    let peer = PeerWatch(role: .secondary)
    peer.begin(mine, calling)
    try tellLeaving(listening, theirs, to: calling)
    // Nobody is there any more.
    calling.send(.init(term: 1, hasLeft: false))
    peer.takeIn()
    #expect(peer.hasLeft)
  }

  /// It calls, and the other side answers and is gone.
  private func tellLeaving(_ listening: consuming BeatPath, _ channel: Channel, to calling: BeatPath) throws {
    listening.begin(channel)
    calling.send(.init(term: 1, hasLeft: false))
    #expect(listening.receive() == .beat(.init(term: 1, hasLeft: false)))
    listening.send(.init(term: 1, hasLeft: true))
  }
}
