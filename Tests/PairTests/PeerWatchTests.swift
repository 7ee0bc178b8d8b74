import Replication
import Testing

@testable import Pair

@Suite("Word of a peer") struct PeerWatchTests {
  /// The kernel tells of a refusal first, and the beats that came before it lie behind.
  @Test func leaving_isHeardBehindARefusal() throws {
    let (mine, theirs) = try channels()
    let peer = PeerWatch(role: .secondary)
    let path = try pathOfAPeerThatLeft { path in
      peer.begin(mine, path)
      return theirs
    }
    #expect(path.send(.init(term: 1, hasLeft: false)), "the first one to nobody, which is answered by a refusal")
    #expect(!path.send(.init(term: 1, hasLeft: false)))
    path.send(.init(term: 1, hasLeft: false))
    peer.takeIn()
    #expect(peer.hasLeft)
  }

  /// A way to a peer that was called, said "left", and is gone.
  private func pathOfAPeerThatLeft(begin: (BeatPath) -> Channel) throws -> BeatPath {
    let (listening, calling) = try beatPaths()
    listening.begin(begin(calling))
    calling.send(.init(term: 1, hasLeft: false))
    #expect(listening.receive() == .beat(.init(term: 1, hasLeft: false)))
    listening.send(.init(term: 1, hasLeft: true))
    return calling
  }
}
