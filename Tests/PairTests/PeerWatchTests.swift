import Replication
import Synchronization
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

  /// A primary that was away, with its secondary. Somebody holds the other ends.
  private func cameBack(_ body: (PeerWatch) -> Void) throws {
    let (mine, theirs) = try channels()
    let (listening, calling) = try beatPaths()
    let peer = PeerWatch(role: .alone)
    peer.begin(mine, calling)
    peer.change(.secondaryConnected)
    peer.change(.firstCheckpoint)
    peer.wasAway(1_000_000_000, until: 1000)
    #expect(peer.mustAsk && !peer.mayTransmit)
    body(peer)
    withExtendedLifetime((theirs, listening)) {}
  }

  @Test func echoOfASecondaryThatFollows_endsTheAsking() throws {
    try cameBack { peer in
      peer.echoed(999)
      #expect(peer.mustAsk, "it had read that before this side was away")
      peer.echoed(1000)
      #expect(!peer.mustAsk && peer.mayTransmit && peer.role == .primary)
    }
  }

  /// Given up, it may have taken over since: what it echoes then comes too late, whenever it is read.
  @Test(arguments: [false, true]) func echoAfterTheSecondaryWasGivenUp_isTooLate(isStalled: Bool) throws {
    try cameBack { peer in
      peer.lose()
      if isStalled { peer.change(.stalled) }
      peer.echoed(2000)
      #expect(peer.mustAsk && !peer.mayTransmit)
      peer.change(.stalled)
      peer.echoed(2000)
      #expect(peer.role == .quarantined && peer.mustAsk)
      // Nobody else serves, as has been found out.
      peer.change(.peerLost)
      peer.isSureToServe()
      #expect(peer.role == .alone && !peer.mustAsk && peer.mayTransmit)
    }
  }

  /// The role alone is enough to ask, whatever else is known.
  @Test func quarantined_asks() throws {
    let peer = PeerWatch(role: .alone)
    peer.change(.secondaryConnected)
    #expect(!peer.mustAsk)
    peer.change(.stalled)
    #expect(peer.mustAsk)
  }

  /// A stall after the secondary was given up does not quarantine the primary.
  @Test func absenceOfWhoServesAlone_isNone() throws {
    try cameBack { peer in
      peer.change(.peerLost)
      peer.isSureToServe()
      peer.wasAway(1_000_000_000, until: 2000)
      #expect(!peer.mustAsk && peer.mayTransmit)
    }
  }

  /// From the moment the role is known on: what follows may come later, on another thread.
  @Test func replaced_transmitsNothing_beforeAnybodySeesTheRole() throws {
    let (mine, theirs) = try channels()
    let (listening, calling) = try beatPaths()
    let peer = PeerWatch(role: .alone)
    peer.begin(mine, calling)
    let seen = Mutex<[Bool]>([])
    peer.fence(by: { [unowned peer] in seen.withLock { $0.append(peer.mayTransmit) } })
    #expect(peer.mayTransmit)
    peer.change(.laterTerm(2))
    peer.isSureToServe()
    #expect(seen.withLock { $0 } == [false] && !peer.mayTransmit)
    withExtendedLifetime((theirs, listening)) {}
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
