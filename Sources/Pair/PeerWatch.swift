internal import CLinux
internal import Devices
internal import Glibc
internal import Replication
internal import Synchronization

/// What a side knows of its peer: its own role, whether the peer lives, and the beat by which both tell each other so. From
/// any thread.
final class PeerWatch: Sendable {
  /// Nanoseconds between signs of life.
  private static let heartbeat: UInt64 = 10_000_000
  /// Silence that is always borne: longer than a kernel keeps busy real-time threads from running (50 ms a second).
  private static let shortest: UInt64 = 60_000_000
  /// So long after it was heard by its peer last, a side can be sure that the peer has not taken over for want of word, in
  /// nanoseconds.
  static let lease = shortest - heartbeat
  /// Absence after which a peer has given this side up, and how long after it what arrives was sent after it, in
  /// nanoseconds.
  private static let absence: UInt64 = 100_000_000
  private static let settled: UInt64 = 200_000_000
  /// Silence of the channel alone, while beats come, after which who serves gives the peer up, in nanoseconds.
  private static let stuck: UInt64 = 500_000_000
  /// Patience while nobody could take over yet, in nanoseconds.
  private static let joiningGrace: UInt64 = 2_000_000_000

  private struct State {
    var roles: RoleMachine
    var detector = FailureDetector(paths: 2, interval: PeerWatch.heartbeat, shortest: PeerWatch.shortest, now: 0)
    var isLost = false
    /// It said that it serves on without this side.
    var hasLeft = false
    /// When this side came back after it had been away for longer than a peer waits.
    var cameBack: UInt64?
    /// Why the peer was taken for lost.
    var loss = ""
    var onRole: @Sendable (Role, String) -> Void = { _, _ in }
  }

  private let state: Mutex<State>

  /// What the peer's newest heartbeat says, for who serves to get back.
  private let heard = Atomic<UInt64>(0)
  private let beats: BeatPath?
  private let fence: @Sendable () -> Void

  /// - Parameters:
  ///   - beats: the second way of signs of life; none leaves the channel alone.
  ///   - fence: called when another serves the clients: nothing may leave any more.
  init(role: Role, beats: BeatPath?, fence: @escaping @Sendable () -> Void = {}) {
    state = Mutex(State(roles: RoleMachine(role: role)))
    self.beats = beats
    self.fence = fence
  }

  var role: Role { state.withLock { $0.roles.role } }
  var term: UInt64 { state.withLock { $0.roles.term } }
  var isLost: Bool { state.withLock { $0.isLost } }
  /// The peer said, by a beat, that it serves on without this side.
  var hasLeft: Bool { state.withLock { $0.hasLeft } }
  var onRole: @Sendable (Role, String) -> Void {
    get { state.withLock { $0.onRole } }
    set { state.withLock { $0.onRole = newValue } }
  }

  /// This side serves in `term`: it was a secondary until now.
  func take(term: UInt64) { state.withLock { $0.roles = RoleMachine(role: .alone, term: term) } }

  /// There is a peer, from now on.
  func begin(_ channel: Channel) {
    FaultPoints.use(channel)
    beats?.begin(channel)
    state.withLock { state in
      state.isLost = false
      state.cameBack = nil
      state.hasLeft = false
      state.loss = ""
      state.detector = FailureDetector(
        paths: 2, interval: Self.heartbeat, shortest: Self.shortest, now: lx_monotonic_ns())
    }
  }

  /// The peer has said something, over the channel (path 0) or by a beat (1).
  func arrived(path: Int = 0) {
    let now = lx_monotonic_ns()
    state.withLock { state in
      state.detector.arrived(path: path, now: now)
      // The peer speaks only to those it counts on.
      if let back = state.cameBack, now - min(back, now) > Self.settled { state.cameBack = nil }
    }
  }

  /// The peer's clock, by a heartbeat of its.
  func heard(_ time: UInt64) { heard.store(time, ordering: .relaxed) }

  /// The channel has ended. The peer may live all the same, which beats tell: waits until it is dead (true), or says that it
  /// serves on by itself (false). While ``run(_:isDead:)`` runs.
  func isDeadWithoutChannel() -> Bool {
    state.withLock { $0.detector.ended(path: 0) }
    while true {
      let (hasLeft, isDead) = state.withLock { ($0.hasLeft, $0.detector.isDead(now: lx_monotonic_ns())) }
      if hasLeft { return false }
      if isDead {
        state.withLock { if $0.loss.isEmpty { $0.loss = $0.detector.silences(now: lx_monotonic_ns()) } }
        return true
      }
      usleep(1000)
    }
  }

  /// Tells a peer that may live, by beats, the term in which this side has replaced it.
  /// For a second, on a thread of its own.
  func replaced() {
    guard let beats else { return }
    let term = term
    _ = try? HostThread.start(name: "pair-term") {
      for _ in 0..<100 {
        beats.send(.init(term: term, hasLeft: false))
        usleep(UInt32(Self.heartbeat / 1000))
      }
    }
  }

  /// Tells the peer, by beats, that this side serves without it, and hears what it says until the next would be due.
  func leave() {
    for _ in 0..<3 { beats?.send(.init(term: term, hasLeft: true)) }
    listen(until: lx_monotonic_ns() + Self.heartbeat)
  }

  /// False while the peer may have given this side up and go on alone: then two would serve.
  var mayTakeOver: Bool { state.withLock { $0.cameBack == nil } }

  /// The peer is gone.
  func lose(_ why: String = "") {
    state.withLock { state in
      state.isLost = true
      if state.loss.isEmpty { state.loss = why }
    }
  }

  /// Why the peer was taken for lost; empty before.
  var loss: String { state.withLock { $0.loss } }

  @discardableResult
  func change(_ event: RoleEvent) -> RoleMachine.Transition? {
    let (transition, tell, loss) = state.withLock { ($0.roles.handle(event), $0.onRole, $0.loss) }
    if transition?.to == .fenced { fence() }
    if let transition {
      tell(transition.to, transition.cause == .peerLost && !loss.isEmpty ? loss : transition.cause.description)
    }
    return transition
  }

  /// Sends signs of life until the peer is lost, or dead by the detector, of which it tells. The body of a thread.
  func run(_ channel: Channel, isDead: () -> Void) {
    // A busy host must not make this side look dead.
    lx_thread_urgent()
    var last = lx_monotonic_ns()
    while true {
      let now = lx_monotonic_ns()
      let (term, serves, over) = state.withLock { (state: inout State) in
        // Kept from running for so long that what the peer sent may not have been read.
        if now - last > 4 * Self.heartbeat { state.detector.wasAway(until: now) }
        if now - last > Self.absence { state.cameBack = now }
        let grace = [.syncing, .joining].contains(state.roles.role) ? Self.joiningGrace : 0
        // Who serves can do without a peer whose channel is stuck, and tell it so by a beat.
        let isStuck = state.roles.mayEmit && state.detector.silence(path: 0, now: now) > Self.stuck + grace
        let isDead = state.detector.isDead(now: now, grace: grace)
        if isStuck || isDead, state.loss.isEmpty { state.loss = state.detector.silences(now: now) }
        return (state.roles.term, state.roles.mayEmit, state.isLost || isStuck || isDead)
      }
      if over { return isDead() }
      if beats?.send(.init(term: term, hasLeft: false)) == false { state.withLock { $0.detector.ended(path: 1) } }
      // Another thread's work: whatever else waits there to be sent must not keep this one from its beat.
      let time = serves ? now : heard.load(ordering: .relaxed)
      if (try? channel.post(.heartbeat(term: term, time: time))) == nil { channel.close() }
      channel.wakeSender()
      last = now
      listen(until: now + Self.heartbeat)
    }
  }

  /// Takes in beats until it is time for the next own one.
  private func listen(until end: UInt64) {
    while true {
      let now = lx_monotonic_ns()
      guard now < end else { return }
      guard let beats else { return _ = usleep(UInt32((end - now) / 1000)) }
      HostThread.waitReadable(beats.descriptor, timeoutMilliseconds: CInt((end - now) / 1_000_000) + 1)
      while true {
        switch beats.receive() {
        case .beat(let beat):
          arrived(path: 1)
          if beat.hasLeft { state.withLock { $0.hasLeft = true } }
          change(.laterTerm(beat.term))
          continue
        case .gone: state.withLock { $0.detector.ended(path: 1) }
        case .none: break
        }
        break
      }
    }
  }
}
