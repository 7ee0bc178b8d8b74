internal import CLinux
internal import Devices
internal import Glibc
internal import Replication
internal import Synchronization

extension PrimarySide: PairSide {
  public var status: PairStatus {
    var status = PairStatus(role: peer.role, mode: options.mode, term: peer.term)
    let role = status.role
    let sent = state.withLock { state in
      status.notice = state.isTapLost ? Self.tapLost : role == .alone && !state.loss.isEmpty ? state.loss : nil
      status.epoch = state.epoch
      status.received = state.received
      return state.channel?.bytesSent ?? 0
    }
    meter.fill(primary: &status, bytesSent: sent)
    status.signs = peer.signs
    status.activeCPUs = registers.withLock { $0?.active }
    status.held = PairStatus.Held(gate)
    let times = gate.times
    status.heldMicroseconds = PairStatus.Times(times)
    status.heldSpreadMicroseconds = PairStatus.spread(times)
    let counters = comparison.withLock { $0.comparator.counters }
    status.comparator = PairStatus.Comparator(
      primaryFrames: counters.primaryFrames, secondaryFrames: counters.secondaryFrames,
      mismatches: counters.mismatches, overflows: counters.overflows)
    if options.mode == .coloPlusPlus {
      status.notEarly = markings.status
      status.earlyAwaited = gate.counters.awaited
    }
    if let counts = heritage.withLock({ $0 })?.counts {
      status.survivor = PairStatus.Survivor(equal: counts.equal, reset: counts.reset)
    }
    return status
  }

  /// Told how far the first copy is, when it takes long.
  public func tellProgress(to tell: @escaping @Sendable (String) -> Void) {
    meter.tellProgress(to: tell)
    peer.tellOfPaths(to: tell)
  }

  public func takeCheckpoint() throws(PairRefusal) -> UInt64 {
    try requireSecondary()
    // A checkpoint that is being taken now belongs to a moment before the request.
    let epoch = turn.withTurn {
      state.withLock { state in
        state.wanted = .demand
        return state.epoch + 1
      }
    }
    lx_eventfd_signal(wake)
    let isReceived = wait { state.withLock { $0.received } >= epoch || peer.role != .primary }
    guard isReceived, state.withLock({ $0.received }) >= epoch else {
      throw PairRefusal(
        isReceived
          ? "the secondary was lost before it had checkpoint \(epoch); start another"
          : "the secondary does not confirm checkpoint \(epoch); is the network between both hosts too slow?")
    }
    return epoch
  }

  public func failOver() throws(PairRefusal) {
    try requireSecondary()
    let channel = state.withLock { $0.channel }
    guard let channel, (try? channel.send(.takeOver)) != nil, wait({ peer.role != .primary }), peer.role == .fenced
    else { throw PairRefusal("the secondary did not take over; this side goes on: see `minivmm status` of both") }
  }

  /// The guest has ended: the secondary hears that there is nothing to take over. Returns when it has, or after two
  /// seconds.
  public func finish() {
    let channel = state.withLock { state in
      state.isEnding = true
      return state.channel
    }
    channel?.dropBulk()
    lx_eventfd_signal(wake)
    for _ in 0..<2000 where state.withLock({ $0.isProtecting }) { usleep(1000) }
  }

  private func requireSecondary() throws(PairRefusal) {
    switch peer.role {
    case .primary: return
    case .syncing: throw PairRefusal("the secondary has not got everything yet; try again when `status` says primary")
    case .quarantined:
      throw PairRefusal("this side was stopped, and asks whether its secondary serves by now; see `minivmm status`")
    case .fenced: throw PairRefusal("another has taken over from this side; ask the other one")
    default: throw PairRefusal("there is no secondary; start one with `minivmm secondary`")
    }
  }

  /// Until `condition` holds, five seconds at most.
  private func wait(_ condition: () -> Bool) -> Bool {
    for _ in 0..<5000 {
      if condition() { return true }
      usleep(1000)
    }
    return condition()
  }
}
