public import GuestMemory

/// Where a network card's frames go and come from on the host. Called on one thread at a time: the device
/// thread, but for a secondary's, which is read on the thread of its signs of life.
///
/// Frames travel with a virtio-net header (12 bytes) in front. A back end without offloads never gives one that asks
/// anything of the receiver, and is never sent one.
public protocol FrameBackend: AnyObject, Sendable {
  /// Descriptor to wait on with epoll.
  var descriptor: CInt { get }
  /// An eventfd, which the card reads, of a back end whose ``descriptor`` does not become writable: signalled when there is room again
  /// after ``SendResult/full``, or a ``flush()`` that left something.
  var room: CInt? { get }
  /// Checksum and segmentation features of virtio-net that the back end can carry (``NetFeature`` bits).
  var offloads: UInt64 { get }
  /// Tells the back end what the driver agreed to receive (``NetFeature`` guest bits).
  func setGuestOffloads(_ features: UInt64)
  /// Sends the `count` bytes from `offset` on in `frame`, behind `header`.
  func send(_ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory) -> SendResult
  /// Sends what is left of an earlier frame; true when nothing is left.
  func flush() -> Bool
  /// Receives a header and a frame into `buffer`: bytes, 0 when none waits, or -errno when the back end has gone.
  func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int
  /// Whether ``reopen()`` may bring it back after it has gone.
  var canReopen: Bool { get }
  /// Of a back end that has gone: tries to get it back, without waiting. True when it is back; ``descriptor`` is another then.
  func reopen() -> Bool
  /// No more is received for the moment, whether or not more waits.
  func receivingEnded()
}

extension FrameBackend {
  public var room: CInt? { nil }
  public var canReopen: Bool { false }
  public func reopen() -> Bool { false }
  public func receivingEnded() {}
}

public enum SendResult: Sendable, Equatable {
  case sent
  /// The host side is full; try the same frame again when the descriptor is writable.
  case full
  /// The frame can't be sent, now or later.
  case dropped
}
