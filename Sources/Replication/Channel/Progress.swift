internal import CLinux
internal import Synchronization

extension Channel {
  /// Whether bulk waits to be sent.
  public var hasBulk: Bool { queue.withLock { !$0.bulk.isEmpty } }

  /// Bytes that wait to be sent.
  public var queuedBytes: Int { queue.withLock { $0.bytes } }

  /// Whether the other side goes on taking what it is sent: one that lives and does not is of no use. A value.
  public struct Progress {
    /// Nanoseconds that nothing may move.
    public static let patience: UInt64 = 5_000_000_000
    private let channel: Channel
    private var sent: UInt64
    private var since = lx_monotonic_ns()

    public init(_ channel: Channel) {
      self.channel = channel
      sent = channel.bytesSent
    }

    /// False when bulk has been waiting for ``patience`` and nothing was sent, or when nothing waits for as long.
    public mutating func continues() -> Bool {
      let now = lx_monotonic_ns()
      if channel.hasBulk, channel.bytesSent != sent {
        sent = channel.bytesSent
        since = now
      }
      return now - since < Self.patience
    }
  }
}
