internal import Devices
internal import Glibc
internal import Replication
internal import Synchronization

extension SecondarySide: PairSide {
  /// What a person should hear of, as it happens.
  public func tellProgress(to tell: @escaping @Sendable (String) -> Void) { meter.tellProgress(to: tell) }

  /// What they should hear of the signs of life.
  public func tellOfPaths(to tell: @escaping @Sendable (String) -> Void) { peer.tellOfPaths(to: tell) }

  public var status: PairStatus {
    var status = PairStatus(role: peer.role, mode: mode, term: peer.term)
    meter.fill(secondary: &status)
    status.signs = peer.signs
    status.activeCPUs = state.withLock { $0.registers?.active }
    return status
  }

  public func takeCheckpoint() throws(PairRefusal) -> UInt64 {
    throw PairRefusal(
      role == .alone
        ? "there is no secondary; this side took over and serves alone"
        : "this side follows a primary; ask the primary for a checkpoint")
  }

  /// Takes over from a primary that lives, which hears of it first and ends.
  public func failOver() throws(PairRefusal) {
    switch role {
    case .secondary: break
    case .joining:
      throw PairRefusal("this side has no whole checkpoint yet; try again when `status` says secondary")
    case .alone, .takingOver: throw PairRefusal("this side has taken over already")
    default: throw PairRefusal("this side may not take over: the primary goes on without it; start it again")
    }
    peer.takeIn()
    guard !peer.hasLeft else { throw PairRefusal("the primary goes on without this side; start this side again") }
    guard peer.mayTakeOver else {
      throw PairRefusal("this side was stopped for a while, and the primary may have given it up; try again soon")
    }
    guard !state.withLock({ $0.isTapLost }) else { throw PairRefusal("\(FollowError.tapLost)") }
    // Looked at with each message of the primary's, at the latest with its next sign of life.
    state.withLock { $0.demanded = true }
    for _ in 0..<5000 {
      if role == .alone { return }
      if role == .fenced { break }
      usleep(1000)
    }
    throw PairRefusal("the takeover did not come off; see `minivmm status` of both sides")
  }
}
