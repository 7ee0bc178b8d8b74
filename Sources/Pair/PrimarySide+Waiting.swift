internal import CLinux
internal import Devices
internal import Replication
internal import Synchronization

/// What the checkpoint thread waits for.
extension PrimarySide {
  /// Until a checkpoint is due: why; nil when the secondary is lost.
  func wait(since last: UInt64, _ patience: inout Patience) -> CheckpointCause? {
    while true {
      if peer.isLost || state.withLock({ $0.isEnding }) { return nil }
      let wanted = state.withLock { state in
        defer { state.wanted = nil }
        return state.wanted
      }
      if let wanted { return wanted }
      let now = lx_monotonic_ns()
      if now - last >= options.period {
        patience.shorten()
        return .period
      }
      if options.mode == .colo, isSilent(now, since: last, patience) {
        patience.lengthen()
        return .silence
      }
      // Silence is looked for often enough; otherwise only the period matters.
      let left = CInt((options.period - (now - last)) / 1_000_000) + 1
      HostThread.waitReadable(wake, timeoutMilliseconds: options.mode == .colo ? min(left, 10) : left)
      _ = lx_eventfd_take(wake)
    }
  }

  /// Whether output has waited for the secondary for too long. The time in which the secondary loads a checkpoint does not
  /// count, unless that alone takes too long.
  func isSilent(_ now: UInt64, since last: UInt64, _ patience: Patience) -> Bool {
    let (isLoaded, loadedAt) = state.withLock { ($0.loaded >= $0.epoch, $0.loadedAt) }
    let waited = gate.waiting.oldest
    guard waited > patience.time else { return false }
    return isLoaded ? now - min(loadedAt, now) > patience.time : now - last > 2 * Patience.longest
  }

  /// Nanoseconds within which a secondary that has been sent a whole checkpoint must confirm it: one that lives and does not
  /// is of no use, and output must not wait for it for ever.
  private static let confirmation: UInt64 = 5_000_000_000

  func awaitReceived(_ epoch: UInt64, _ channel: Channel) -> Bool {
    var sent = lx_monotonic_ns()
    while true {
      if peer.isLost || state.withLock({ $0.isEnding }) { return false }
      if state.withLock({ $0.received }) >= epoch { return true }
      if channel.hasBulk { sent = lx_monotonic_ns() }
      if lx_monotonic_ns() - sent > Self.confirmation {
        peer.lose("checkpoint \(epoch) was not confirmed within \(Self.confirmation / 1_000_000_000) s")
        return false
      }
      HostThread.waitReadable(wake, timeoutMilliseconds: 100)
      _ = lx_eventfd_take(wake)
    }
  }
}
