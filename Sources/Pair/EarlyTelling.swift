internal import Replication
internal import Synchronization

/// Tells the secondary what is about to leave early. From any thread.
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

  /// - Returns: whether all of it has gone to the kernel, so that it is on its way even if this process ends now. What was told
  ///   in vain is told again.
  func tell(_ leaving: [OutputGate.Leaving]) -> Bool {
    state.withLock { state in
      guard state != nil else { return true }
      var rest = leaving[...]
      while let epoch = rest.first?.earlyIn {
        let same = rest.prefix { $0.earlyIn == epoch }
        rest = rest.dropFirst(same.count)
        var outputs: [EarlyOutput] = []
        for frame in same {
          if let output = state?.teller.output(frame.bytes, header: NetHeader.size) { outputs.append(output) }
        }
        guard (try? state?.channel.send(.early(card: 0, epoch: epoch, outputs: outputs))) != nil else { return false }
      }
      return state?.channel.isUrgentDrained ?? true
    }
  }
}
