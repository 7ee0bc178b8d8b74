internal import Replication
internal import Synchronization

/// Tells the secondary what may leave early. From any thread.
final class EarlyTelling: Sendable {
  /// Held while a piece is told; the channel is asked for by others meanwhile.
  private let teller = Mutex<EarlyTeller?>(nil)
  private let channel = Mutex<Channel?>(nil)
  /// What was told over channels before this one.
  private let before = Atomic<UInt64>(0)

  /// With a new secondary.
  func begin(_ channel: Channel) {
    teller.withLock { $0 = EarlyTeller(channel) }
    self.channel.withLock { $0 = channel }
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

  /// Whether what was told has gone to the kernel, so that it is on its way even if this process ends now; if not, it is sent,
  /// as far as there is room.
  func isOnItsWay(_ told: UInt64) -> Bool {
    let channel = channel.withLock { $0 }
    let before = before.load(ordering: .relaxed)
    guard let channel, told > before else { return true }
    if channel.urgentHandedOver >= told - before { return true }
    channel.flush()
    return channel.urgentHandedOver >= told - before
  }
}
