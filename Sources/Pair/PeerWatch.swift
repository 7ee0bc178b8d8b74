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
  /// How many times longer than usual silence is borne: $MINIVMM_STRETCH, alike on both sides. For tests on emulated hosts, whose
  /// threads come late.
  static let stretch: UInt64 = {
    let asked = unsafe getenv("MINIVMM_STRETCH").flatMap { unsafe UInt64(String(cString: $0)) }
    return min(max(asked ?? 1, 1), 100)
  }()
  /// Silence that a secondary bears on both paths before it takes over, at the least and at the most, in nanoseconds. The least is
  /// longer than a kernel keeps busy real-time threads from running (50 ms a second).
  private static let secondaryBears: ClosedRange<UInt64> = 60_000_000 * stretch...100_000_000 * stretch
  /// What a primary bears before it goes on alone: always longer than its secondary, and until the secondary's later term has come.
  private static let primaryBears: ClosedRange<UInt64> = 150_000_000 * stretch...200_000_000 * stretch
  /// Lease: for this long after the peer has last heard this side, it cannot have taken over for want of word, in nanoseconds.
  static let lease = secondaryBears.lowerBound - heartbeat
  /// A secondary that did not run for this long may have been given up by its primary; nanoseconds.
  private static let absence = secondaryBears.upperBound
  /// What arrives this long after an absence was sent after it; nanoseconds.
  private static let settled: UInt64 = 200_000_000 * stretch
  /// Silence of the channel alone, while beats come, after which who serves gives the peer up, in nanoseconds.
  private static let stuck: UInt64 = 500_000_000 * stretch
  /// Silence of one path alone after which people are told, in nanoseconds.
  private static let worrying: UInt64 = 5_000_000_000
  /// Taken in at a time.
  private static let mostBeats = 1024
  /// Patience while nobody could take over yet, in nanoseconds.
  private static let joiningGrace: UInt64 = 2_000_000_000 * stretch

  private struct State {
    var roles: RoleMachine
    var detector = FailureDetector(paths: 2, now: 0)
    var isLost = false
    /// Heartbeats are sent no more.
    var isOver = false
    /// This side has announced that it serves without the peer; each heartbeat repeats that.
    var isLeaving = false
    /// The detector has found it dead, whatever comes of it afterwards.
    var isGivenUp = false
    /// It said that it serves on without this side.
    var hasLeft = false
    /// Primary: the secondary is known not to serve, and cannot fail over any more.
    var isSure = false
    /// When this side came back after it had been away for so long that the peer may have given it up, or taken over.
    var cameBack: UInt64?
    /// The longest of those times, in nanoseconds.
    var away: UInt64 = 0
    /// Why the peer was taken for lost.
    var loss = ""
    /// The second way of signs of life to this peer.
    var beats: BeatPath?
    /// People have been told that a path is silent.
    var hasWarned = false
    var tell: @Sendable (String) -> Void = { _ in }
    var onRole: @Sendable (Role, String) -> Void = { _, _ in }
    /// Called when another serves the clients: nothing may leave any more.
    var fence: @Sendable () -> Void = {}
  }

  private let state: Mutex<State>
  /// Held while beats are taken in, so that none is missing from what another thread decides by.
  private let intake = Mutex(())

  /// What the peer's newest heartbeat says, for who serves to get back.
  private let heard = Atomic<UInt64>(0)
  private let isPrimary: Bool
  /// When the thread that sends heartbeats ran last, by the clock that counts on while the host is suspended; 0 while there is
  /// none.
  private let ticked = Atomic<UInt64>(0)
  /// This side may have been replaced.
  private let isQuarantined = Atomic(false)
  /// It has been replaced.
  private let isFenced = Atomic(false)

  init(role: Role) {
    state = Mutex(State(roles: RoleMachine(role: role)))
    isPrimary = role != .joining
  }

  private var beats: BeatPath? { state.withLock { $0.beats } }

  var role: Role { state.withLock { $0.roles.role } }
  var term: UInt64 { state.withLock { $0.roles.term } }
  var isLost: Bool { state.withLock { $0.isLost } }
  /// The peer said, by a beat, that it serves on without this side.
  var hasLeft: Bool { state.withLock { $0.hasLeft } }
  var onRole: @Sendable (Role, String) -> Void {
    get { state.withLock { $0.onRole } }
    set { state.withLock { $0.onRole = newValue } }
  }

  /// Whether signs of life have come on both paths: only then does the end of one say nothing of the peer.
  var isHeardByBoth: Bool { state.withLock { $0.detector.isHeard(path: 0) && $0.detector.isHeard(path: 1) } }

  /// How long each path has been silent; nil without a peer.
  var signs: PairStatus.Signs? {
    let now = lx_monotonic_ns()
    return state.withLock { state in
      guard state.beats != nil, !state.isLost else { return nil }
      func silence(_ path: Int) -> Double? {
        guard state.detector.isHeard(path: path) else { return nil }
        return Double(state.detector.silence(path: path, now: now) / 1_000_000)
      }
      return PairStatus.Signs(channelMilliseconds: silence(0), beatsMilliseconds: silence(1))
    }
  }

  /// What ends all output once another serves the clients.
  func fence(by fence: @escaping @Sendable () -> Void) { state.withLock { $0.fence = fence } }

  /// Told what people should hear of the paths.
  func tellOfPaths(to tell: @escaping @Sendable (String) -> Void) { state.withLock { $0.tell = tell } }

  /// Tells people what they should hear.
  func say(_ text: String) { state.withLock { $0.tell }(text) }

  /// This side serves in `term`: it was a secondary until now.
  func take(term: UInt64) { state.withLock { $0.roles = RoleMachine(role: .alone, term: term) } }

  /// There is a peer, from now on.
  /// - Parameter beats: the second way of signs of life.
  func begin(_ channel: Channel, _ beats: BeatPath) {
    FaultPoints.use(channel)
    beats.begin(channel)
    state.withLock { state in
      state.beats = beats
      state.hasWarned = false
      state.isLost = false
      state.isOver = false
      state.isLeaving = false
      state.isGivenUp = false
      state.isSure = false
      state.cameBack = nil
      state.away = 0
      state.hasLeft = false
      state.loss = ""
      let bears = isPrimary ? Self.primaryBears : Self.secondaryBears
      state.detector = FailureDetector(
        paths: 2, shortest: bears.lowerBound, longest: bears.upperBound, now: lx_monotonic_ns())
    }
    ticked.store(lx_boottime_ns(), ordering: .releasing)
  }

  /// Heartbeats end.
  func end() {
    state.withLock { $0.isOver = true }
    ticked.store(0, ordering: .releasing)
  }

  // MARK: Whether this side may have been replaced

  /// Primary: whether it is sure that its secondary has not taken over. Any thread asks it before a frame goes to the clients: after
  /// a stop of this process some other thread may run before the one that notices.
  var mayTransmit: Bool {
    !isAway(longerThan: Self.lease) && !isQuarantined.load(ordering: .acquiring) && !isFenced.load(ordering: .acquiring)
  }

  private func isAway(longerThan limit: UInt64) -> Bool {
    let last = ticked.load(ordering: .acquiring)
    guard last != 0 else { return false }
    let now = lx_boottime_ns()
    return now - min(last, now) > limit
  }

  /// Primary: it has just been started, and another may serve its guest: nothing leaves before it has asked.
  func askFirst() { isQuarantined.store(true, ordering: .releasing) }

  /// Primary: whether it has to ask who serves; and for how long it was away.
  var mustAsk: Bool { isQuarantined.load(ordering: .acquiring) || role == .quarantined }
  var away: UInt64 { state.withLock { $0.away } }

  /// This side did not run for `time` nanoseconds, which ended `now`.
  func wasAway(_ time: UInt64, until now: UInt64) { state.withLock { wasAway(time, until: now, &$0) } }

  private func wasAway(_ time: UInt64, until now: UInt64, _ state: inout State) {
    // The secondary has been given up and cannot fail over: a stall of this primary is harmless.
    if state.isSure { return }
    state.cameBack = now
    state.away = max(state.away, time)
    if isPrimary { isQuarantined.store(true, ordering: .releasing) }
  }

  /// Primary: the secondary follows still; it has read what this side said at `time`. Too late once it has been given up: what is
  /// known of it then is for ``isSureToServe()``.
  func echoed(_ time: UInt64) {
    state.withLock { state in
      guard [.syncing, .primary].contains(state.roles.role), !state.isLost, !state.isGivenUp,
        let back = state.cameBack, time >= back
      else { return }
      state.cameBack = nil
      state.away = 0
      isQuarantined.store(false, ordering: .releasing)
    }
  }

  /// Primary: nobody else serves.
  func isSureToServe() {
    state.withLock { state in
      state.isSure = true
      ticked.store(0, ordering: .releasing)
      state.cameBack = nil
      state.away = 0
      isQuarantined.store(false, ordering: .releasing)
    }
  }

  /// False while the peer may have given this side up and go on alone: then two would serve.
  var mayTakeOver: Bool { !isAway(longerThan: Self.absence) && state.withLock { $0.cameBack == nil } }

  // MARK: The peer

  /// The peer has said something, over the channel (path 0) or by a beat (1).
  func arrived(path: Int = 0) {
    let now = lx_monotonic_ns()
    state.withLock { state in
      state.detector.arrived(path: path, now: now)
      // The peer speaks only to those it counts on.
      if !isPrimary, let back = state.cameBack, now - min(back, now) > Self.settled { state.cameBack = nil }
    }
  }

  /// The peer's clock, by a heartbeat of its.
  func heard(_ time: UInt64) { heard.store(time, ordering: .relaxed) }

  /// The channel has ended. The peer may live all the same, which beats tell: waits until it is dead (true), or says that it
  /// serves on by itself (false). While ``run(_:isDead:)`` runs.
  func isDeadWithoutChannel() -> Bool {
    state.withLock { $0.detector.ended(path: 0) }
    while true {
      takeIn()
      let now = lx_monotonic_ns()
      let (hasLeft, isDead) = state.withLock { ($0.hasLeft, $0.isGivenUp || $0.detector.isDead(now: now)) }
      if hasLeft { return false }
      if isDead {
        state.withLock { if $0.loss.isEmpty { $0.loss = $0.detector.silences(now: lx_monotonic_ns()) } }
        return true
      }
      usleep(1000)
    }
  }

  /// Sends heartbeats with the term in which this side has replaced its peer, for a second, on a thread of its own: the peer may be
  /// alive although nothing from it arrives. A peer whose heartbeats arrive is answered until this process ends
  /// (``BeatPath/answer(_:)``).
  func replaced() {
    guard let beats else { return }
    let term = term
    for _ in 0..<3 { beats.send(.init(term: term, hasLeft: false)) }
    let thread = try? HostThread.start(name: "pair-term") {
      for _ in 0..<100 {
        beats.send(.init(term: term, hasLeft: false))
        usleep(UInt32(Self.heartbeat / 1000))
      }
    }
    if thread == nil { say("no thread can be started: the later term is said to a primary that is heard alone") }
  }

  /// Tells the peer, by beats, that this side serves without it, and hears what it says until the next would be due.
  /// - Returns: false if the peer may have taken over, and is told nothing: this side was stopped for a while.
  func leave() -> Bool {
    guard mayTransmit else { return false }
    state.withLock { $0.isLeaving = true }
    for _ in 0..<3 { beats?.send(.init(term: term, hasLeft: true)) }
    listen()
    let isSure = mayTransmit
    if !isSure { state.withLock { $0.isLeaving = false } }
    return isSure
  }

  /// Goes on for one heartbeat, and hears what the peer says.
  func listen() { listen(until: lx_monotonic_ns() + Self.heartbeat) }

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
    let (transition, tell, loss, fence) = state.withLock { state in
      let transition = state.roles.handle(event)
      // Set under the lock: a thread that reads the fenced role must not release held output.
      if transition?.to == .fenced { isFenced.store(true, ordering: .releasing) }
      return (transition, state.onRole, state.loss, state.fence)
    }
    if transition?.to == .fenced { fence() }
    if let transition {
      tell(transition.to, transition.cause == .peerLost && !loss.isEmpty ? loss : transition.cause.description)
    }
    return transition
  }

  /// Sends heartbeats until ``end()``. The body of a thread.
  /// - Parameters:
  ///   - isDead: called once, when the peer is lost, or dead by the detector.
  ///   - onBeat: called each time.
  func run(_ channel: Channel, isDead: () -> Void, onBeat: () -> Void = {}) {
    guard let beats else { return }
    // A busy host must not make this side look dead.
    lx_thread_urgent()
    var last = lx_boottime_ns()
    var isTold = false
    while true {
      let now = lx_monotonic_ns()
      let uptime = lx_boottime_ns()
      let away = uptime - last
      last = uptime
      let (beat, serves, isLost, isOver) = state.withLock { (state: inout State) in
        // Kept from running for so long that what the peer sent may not have been read.
        if away > 4 * Self.heartbeat { state.detector.wasAway(until: now) }
        if away > (isPrimary ? Self.lease : Self.absence) { wasAway(away, until: now, &state) }
        if !state.isOver, !state.isSure { ticked.store(uptime, ordering: .releasing) }
        let grace = [.syncing, .joining].contains(state.roles.role) ? Self.joiningGrace : 0
        // Who serves can do without a peer whose channel is stuck, and tell it so by a beat.
        // What has come and lies there is this host's to read, which has no CPU for it.
        let isStuck =
          state.roles.mayEmit && state.detector.silence(path: 0, now: now) > Self.stuck + grace && !channel.isUnread
        let isDead = state.detector.isDead(now: now, grace: grace)
        if isStuck || isDead, state.loss.isEmpty { state.loss = state.detector.silences(now: now) }
        state.isGivenUp = state.isGivenUp || isDead
        return (
          BeatPath.Beat(term: state.roles.term, hasLeft: state.isLeaving), state.roles.mayEmit,
          state.isLost || isStuck || state.isGivenUp, state.isOver
        )
      }
      if isOver { return }
      if isLost, !isTold {
        isTold = true
        isDead()
      }
      if !isLost { warn(now) }
      if beats.send(beat) == false { state.withLock { $0.detector.ended(path: 1) } }
      let time = serves ? now : heard.load(ordering: .relaxed)
      if !isLost, (try? channel.post(.heartbeat(term: beat.term, time: time))) == nil { channel.close() }
      // Behind the beat, and not left to the sending thread, which a busy host may keep waiting for longer than a peer does. No more
      // than a record: this thread is before all others.
      channel.flush(atMost: 1)
      onBeat()
      listen(until: now + Self.heartbeat)
    }
  }

  /// Says once, and again when it has come back and gone, that one path is silent: nothing else shows it.
  private func warn(_ now: UInt64) {
    let warning: (@Sendable (String) -> Void, String)? = state.withLock { state in
      let silent = (0...1).filter { state.detector.silence(path: $0, now: now) > Self.worrying }
      guard let path = silent.first, silent.count == 1 else {
        state.hasWarned = state.hasWarned && !silent.isEmpty
        return nil
      }
      guard !state.hasWarned else { return nil }
      state.hasWarned = true
      return (state.tell, Self.warning(path, isHeard: state.detector.isHeard(path: path)))
    }
    if let (tell, text) = warning { tell(text) }
  }

  private static func warning(_ path: Int, isHeard: Bool) -> String {
    let seconds = worrying / 1_000_000_000
    if path == 0 { return "the channel has been silent for \(seconds) s; signs of life come by UDP alone" }
    let cure = "let UDP through between both hosts, or give both --heartbeat with an address on a way that does"
    return isHeard
      ? "no sign of life by UDP for \(seconds) s; until one comes, the end of the channel means a guest on both: \(cure)"
      : "no sign of life by UDP as yet, and no protection without; \(cure)"
  }

  /// Waits until it is time for the next own beat, then takes in what has come: waking for each of the peer's would cost more
  /// than all else that this thread does.
  private func listen(until end: UInt64) {
    let now = lx_monotonic_ns()
    if now < end { usleep(UInt32((end - now) / 1000)) }
    takeIn()
  }

  /// Takes in the beats that wait: one sign of life, however many. Whoever decides by what the peer has said calls it first.
  func takeIn() {
    guard let beats else { return }
    intake.withLock { _ in
      var hasCome = false
      for _ in 0..<Self.mostBeats {
        switch beats.receive() {
        case .beat(let beat):
          hasCome = true
          if beat.hasLeft { state.withLock { $0.hasLeft = true } }
          change(.laterTerm(beat.term))
          continue
        case .gone:
          // A refusal can be anybody's, and is told before the beats that came before it.
          hasCome = false
          state.withLock { $0.detector.ended(path: 1) }
          continue
        case .none: break
        }
        break
      }
      if hasCome { arrived(path: 1) }
    }
  }
}
