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
  /// Absence after which a peer has given this side up, and how long after it what arrives was sent after it, in
  /// nanoseconds.
  private static let absence: UInt64 = 100_000_000
  private static let settled: UInt64 = 200_000_000
  /// Patience while nobody could take over yet, in nanoseconds.
  private static let joiningGrace: UInt64 = 2_000_000_000

  private struct State {
    var roles: RoleMachine
    var detector = FailureDetector(paths: 1, interval: PeerWatch.heartbeat, now: 0)
    var isLost = false
    /// When this side came back after it had been away for longer than a peer waits.
    var cameBack: UInt64?
    var onRole: @Sendable (Role) -> Void = { _ in }
  }

  private let state: Mutex<State>

  init(role: Role) { state = Mutex(State(roles: RoleMachine(role: role))) }

  var role: Role { state.withLock { $0.roles.role } }
  var term: UInt64 { state.withLock { $0.roles.term } }
  var isLost: Bool { state.withLock { $0.isLost } }
  var onRole: @Sendable (Role) -> Void {
    get { state.withLock { $0.onRole } }
    set { state.withLock { $0.onRole = newValue } }
  }

  /// This side serves in `term`: it was a secondary until now.
  func take(term: UInt64) { state.withLock { $0.roles = RoleMachine(role: .alone, term: term) } }

  /// There is a peer, from now on.
  func begin() {
    state.withLock { state in
      state.isLost = false
      state.cameBack = nil
      state.detector = FailureDetector(paths: 1, interval: Self.heartbeat, now: lx_monotonic_ns())
    }
  }

  /// The peer has said something.
  func arrived() {
    let now = lx_monotonic_ns()
    state.withLock { state in
      state.detector.arrived(path: 0, now: now)
      // The peer speaks only to those it counts on.
      if let back = state.cameBack, now - min(back, now) > Self.settled { state.cameBack = nil }
    }
  }

  /// False while the peer may have given this side up and go on alone: then two would serve.
  var mayTakeOver: Bool { state.withLock { $0.cameBack == nil } }

  /// The peer is gone.
  func lose() { state.withLock { $0.isLost = true } }

  @discardableResult
  func change(_ event: RoleEvent) -> RoleMachine.Transition? {
    let (transition, tell) = state.withLock { ($0.roles.handle(event), $0.onRole) }
    if let transition { tell(transition.to) }
    return transition
  }

  /// Sends signs of life until the peer is lost, or dead by the detector, of which it tells. The body of a thread.
  func run(_ channel: Channel, isDead: () -> Void) {
    // A busy host must not make this side look dead.
    lx_thread_urgent(1)
    var number: UInt64 = 0
    var last = lx_monotonic_ns()
    while true {
      let now = lx_monotonic_ns()
      let (term, over) = state.withLock { state in
        // Kept from running for so long that what the peer sent may not have been read.
        if now - last > 4 * Self.heartbeat { state.detector.wasAway(until: now) }
        if now - last > Self.absence { state.cameBack = now }
        let grace = [.syncing, .joining].contains(state.roles.role) ? Self.joiningGrace : 0
        return (state.roles.term, state.isLost || state.detector.isDead(now: now, grace: grace))
      }
      if over { return isDead() }
      do throws(ChannelError) { try channel.send(.heartbeat(term: term, sequence: number)) } catch {
        return channel.close()
      }
      last = now
      number += 1
      usleep(UInt32(Self.heartbeat / 1000))
    }
  }
}
