internal import CLinux
internal import Devices
internal import Glibc
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
      handOver(now)
      if now - last >= options.period {
        patience.shorten()
        return .period
      }
      if options.mode == .coloPlusPlus { askAgain() }
      if options.mode.compares, isSilent(now, since: last, patience) {
        patience.lengthen()
        return .silence
      }
      // Silence is looked for often enough; otherwise only the period matters.
      let left = CInt((options.period - (now - last)) / 1_000_000) + 1
      HostThread.waitReadable(wake, timeoutMilliseconds: options.mode.compares ? min(left, 10) : left)
      _ = lx_eventfd_take(wake)
    }
  }

  private static let askAgainAfter: UInt64 = 1_000_000_000

  /// Without its tap this side can't serve the clients, and a secondary that is there can: it leaves when its own has gone. Once more
  /// a second, while it may not.
  private func handOver(_ now: UInt64) {
    guard peer.role == .primary else { return }
    let (channel, isFirst) = state.withLock { (state: inout State) -> (Channel?, Bool) in
      let isDue = state.askedToTakeOver.map { now - min($0, now) > Self.askAgainAfter } ?? true
      guard state.isTapLost, isDue else { return (nil, false) }
      defer { state.askedToTakeOver = now }
      return (state.channel, state.askedToTakeOver == nil)
    }
    guard let channel else { return }
    if isFirst { peer.say("\(Self.tapLost); the secondary is asked to take over") }
    try? channel.send(.takeOver)
  }

  static let tapLost = "this side's tap has gone"

  /// A secondary may wait with what it takes for output that leaves early, while this side waits for it: both guests have marked
  /// it, and their memory differs. It is asked before anybody is taken for silent.
  private func askAgain() {
    let frames = gate.overdue(after: options.patience / 4, limit: 256)
    guard !frames.isEmpty else { return }
    let epoch = gate.epoch
    for frame in frames { unsafe frame.withUnsafeBytes { unsafe early.ask($0, epoch: epoch) } }
    flush()
  }

  /// Until signs of life have come by both ways; false when the secondary is lost. With one way alone its end would look like
  /// this side's death, and both would serve. The secondary answers beats that it has heard, so that both ways work in both
  /// directions.
  func awaitBothPaths() -> Bool {
    while !peer.isHeardByBoth {
      if peer.isLost || state.withLock({ $0.isEnding }) { return false }
      usleep(1000)
    }
    return true
  }

  /// Whether output has waited for the secondary for too long. The time in which the secondary loads a checkpoint does not
  /// count, unless that alone takes too long.
  func isSilent(_ now: UInt64, since last: UInt64, _ patience: Patience) -> Bool {
    let (isLoaded, loadedAt) = state.withLock { ($0.loaded >= $0.epoch, $0.loadedAt) }
    let waited = gate.waiting.oldest
    guard waited > patience.time else { return false }
    return isLoaded ? now - min(loadedAt, now) > patience.time : now - last > 2 * Patience.longest
  }

  /// Until the secondary has all of a checkpoint; false when it is lost, or does not say so in time.
  func awaitReceived(_ epoch: UInt64, _ channel: Channel) -> Bool {
    var progress = Channel.Progress(channel)
    while true {
      if peer.isLost || state.withLock({ $0.isEnding }) { return false }
      if state.withLock({ $0.received }) >= epoch { return true }
      guard progress.continues() else {
        peer.lose("checkpoint \(epoch) was not confirmed within \(Channel.Progress.patience / 1_000_000_000) s")
        return false
      }
      HostThread.waitReadable(wake, timeoutMilliseconds: 100)
      _ = lx_eventfd_take(wake)
    }
  }
}
