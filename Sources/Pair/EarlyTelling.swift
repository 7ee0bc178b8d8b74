internal import CLinux
internal import Replication
internal import Synchronization

/// Tells the secondary what may leave early, in batches. From any thread.
final class EarlyTelling: Sendable {
  private struct State: ~Copyable {
    var teller: EarlyTeller?
    var channel: Channel?
    /// Not posted yet, of one epoch.
    var batch: [EarlyOutput] = []
    var epoch: UInt64 = 0
    /// The batch's number; counts from 1, over all channels.
    var number: UInt64 = 1
    /// The newest batch that was posted, and its place among the channel's urgent messages.
    var posted: (number: UInt64, urgent: UInt64) = (0, 0)
  }

  /// Pieces after which a batch is posted.
  private static let batchLimit = 256
  private let state = Mutex(State())
  /// The newest moment by this side's clock of which the secondary has said that it heard from this side since.
  private let heard = Atomic<UInt64>(0)
  /// Monotonic nanoseconds.
  private let clock: @Sendable () -> UInt64

  init(clock: @escaping @Sendable () -> UInt64 = { lx_monotonic_ns() }) { self.clock = clock }

  /// With a new secondary.
  func begin(_ channel: Channel) {
    state.withLock { state in
      state.teller = EarlyTeller(channel)
      state.channel = channel
    }
    heard.store(0, ordering: .relaxed)
  }

  /// The secondary has heard what this side said at `time`.
  func heard(_ time: UInt64) {
    guard time <= clock(), time > heard.load(ordering: .relaxed) else { return }
    heard.store(time, ordering: .relaxed)
  }

  /// The secondary may have taken over since, and not hear any more what it is told: this side was stopped, or is not heard.
  private var isForgotten: Bool {
    let now = clock()
    return now - min(heard.load(ordering: .relaxed), now) > PeerWatch.lease
  }

  /// There is nobody to be told any more.
  func end() {
    state.withLock { state in
      state.teller = nil
      state.channel = nil
      state.batch = []
      state.posted = (state.number, 0)
      state.number += 1
    }
  }

  /// A frame of `epoch` is to leave early. It goes with what is sent next.
  /// - Returns: how to ask whether the secondary is sure to hear of it; nil when it may not leave, because it is one too many.
  func tell(_ frame: UnsafeRawBufferPointer, epoch: UInt64) -> UInt64? {
    guard !isForgotten else { return nil }
    // Looked at during the call only.
    nonisolated(unsafe) let frame = unsafe frame
    return state.withLock { state in
      if epoch != state.epoch || state.batch.count >= Self.batchLimit {
        Self.post(&state)
        guard state.batch.isEmpty else { return nil }
      }
      state.epoch = epoch
      guard let output = unsafe state.teller?.output(frame, header: NetHeader.size, epoch: epoch) else { return nil }
      state.batch.append(output)
      return state.number
    }
  }

  /// Posts what was told: before the channel is flushed.
  func post() { state.withLock { Self.post(&$0) } }

  private static func post(_ state: inout State) {
    guard !state.batch.isEmpty, let channel = state.channel else { return }
    // A channel that takes no more ends, and ``end()`` follows; until then nothing of this leaves.
    guard (try? channel.post(.early(card: 0, epoch: state.epoch, outputs: state.batch))) != nil else { return }
    state.batch.removeAll(keepingCapacity: true)
    state.posted = (state.number, channel.urgentPut)
    state.number += 1
  }

  /// A frame of `epoch` waits for the secondary's, which keeps back what is to leave early. It goes with what is sent next.
  func ask(_ frame: UnsafeRawBufferPointer, epoch: UInt64) {
    guard let output = unsafe AskedOutput(frame, header: NetHeader.size) else { return }
    try? state.withLock({ $0.channel })?.post(.ask(card: 0, epoch: epoch, output: output))
  }

  /// Whether what was told has gone to the kernel, so that it is on its way even if this process ends now, to a secondary that has
  /// not taken over; if not, it is sent, as far as there is room.
  func isOnItsWay(_ told: UInt64) -> Bool {
    let (channel, urgent) = state.withLock { state in
      if told > state.posted.number { Self.post(&state) }
      return (state.channel, told <= state.posted.number ? state.posted.urgent : nil)
    }
    guard let channel else { return true }
    guard let urgent, !isForgotten else { return false }
    if channel.urgentHandedOver >= urgent { return true }
    channel.flush()
    return channel.urgentHandedOver >= urgent
  }
}
