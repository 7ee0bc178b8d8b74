internal import CLinux
internal import Replication
internal import Synchronization

/// Tells the secondary what may leave early. From any thread.
final class EarlyTelling: Sendable {
  /// Held while a piece is told; the channel is asked for by others meanwhile.
  private let teller = Mutex<EarlyTeller?>(nil)
  private let channel = Mutex<Channel?>(nil)
  /// What was told over channels before this one.
  private let before = Atomic<UInt64>(0)
  /// The newest moment by this side's clock of which the secondary has said that it heard from this side since.
  private let heard = Atomic<UInt64>(0)
  /// Monotonic nanoseconds.
  private let clock: @Sendable () -> UInt64

  init(clock: @escaping @Sendable () -> UInt64 = { lx_monotonic_ns() }) { self.clock = clock }

  /// With a new secondary.
  func begin(_ channel: Channel) {
    teller.withLock { $0 = EarlyTeller(channel) }
    self.channel.withLock { $0 = channel }
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
    teller.withLock { teller in
      teller = nil
      let channel = self.channel.withLock { $0.take() }
      if let channel { before.wrappingAdd(channel.urgentPut, ordering: .relaxed) }
    }
  }

  /// A frame of `epoch` is to leave early. It goes with what is sent next.
  /// - Returns: how to ask whether the secondary is sure to hear of it; nil when it may not leave, because it is one too many.
  func tell(_ frame: UnsafeRawBufferPointer, epoch: UInt64) -> UInt64? {
    guard !isForgotten else { return nil }
    // Looked at during the call only.
    nonisolated(unsafe) let frame = unsafe frame
    return teller.withLock { teller in
      guard let channel = channel.withLock({ $0 }),
        let output = unsafe teller?.output(frame, header: NetHeader.size, epoch: epoch),
        (try? channel.post(.early(card: 0, epoch: epoch, outputs: [output]))) != nil
      else { return nil }
      return before.load(ordering: .relaxed) + channel.urgentPut
    }
  }

  /// A frame of `epoch` waits for the secondary's, which keeps back what is to leave early. It goes with what is sent next.
  func ask(_ frame: UnsafeRawBufferPointer, epoch: UInt64) {
    guard let output = unsafe AskedOutput(frame, header: NetHeader.size) else { return }
    try? channel.withLock({ $0 })?.post(.ask(card: 0, epoch: epoch, output: output))
  }

  /// Whether what was told has gone to the kernel, so that it is on its way even if this process ends now, to a secondary that has
  /// not taken over; if not, it is sent, as far as there is room.
  func isOnItsWay(_ told: UInt64) -> Bool {
    let channel = channel.withLock { $0 }
    let before = before.load(ordering: .relaxed)
    guard let channel, told > before else { return true }
    guard !isForgotten else { return false }
    if channel.urgentHandedOver >= told - before { return true }
    channel.flush()
    return channel.urgentHandedOver >= told - before
  }
}
