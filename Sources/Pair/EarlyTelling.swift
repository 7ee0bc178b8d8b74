internal import Replication
internal import Synchronization

/// Tells the secondary what may leave early. From any thread.
final class EarlyTelling: Sendable {
  private struct State: ~Copyable {
    let channel: Channel
    var teller: EarlyTeller
  }

  private let state = Mutex<State?>(nil)

  /// With a new secondary.
  func begin(_ channel: Channel) { state.withLock { $0 = State(channel: channel, teller: EarlyTeller(channel)) } }

  /// There is nobody to be told any more.
  func end() { state.withLock { $0 = nil } }

  /// A frame of `epoch` is to leave early. It goes with what is sent next.
  /// - Returns: false when it may not, because it is one too many.
  func tell(_ frame: UnsafeRawBufferPointer, epoch: UInt64) -> Bool {
    // Looked at during the call only.
    nonisolated(unsafe) let frame = unsafe frame
    return state.withLock { state in
      guard let output = unsafe state?.teller.output(frame, header: NetHeader.size, epoch: epoch) else { return false }
      return (try? state?.channel.post(.early(card: 0, epoch: epoch, outputs: [output]))) != nil
    }
  }

  /// A frame of `epoch` waits for the secondary's, which keeps back what is to leave early. It goes with what is sent next.
  func ask(_ frame: UnsafeRawBufferPointer, epoch: UInt64) {
    guard let output = unsafe AskedOutput(frame, header: NetHeader.size) else { return }
    state.withLock { state in
      try? state?.channel.post(.ask(card: 0, epoch: epoch, output: output))
    }
  }

  /// Whether all that was told has gone to the kernel, so that it is on its way even if this process ends now; if not, it is sent,
  /// as far as there is room.
  var isOnItsWay: Bool {
    let channel = state.withLock { $0?.channel }
    guard let channel else { return true }
    if channel.isUrgentDrained { return true }
    channel.flush()
    return channel.isUrgentDrained
  }
}
