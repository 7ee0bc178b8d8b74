/// Whether a guest has said what a frame is made of.
public enum Marking: Sendable {
  /// It says so of none.
  case none
  /// It is not looked at in this epoch (``EarlyPolicy``).
  case unsought
  case unmarked
  /// It has, and what it is made of has changed since the newest checkpoint.
  case changed
  /// It has, but it is held: the secondary may take it for one that leaves early.
  case open
  /// Where it serves, it leaves early, and the secondary was told; where it follows, the primary's is likely to.
  case marked
}

/// What a card's back end tells the engine of its side, on the device thread. Frames with their virtio-net header.
public protocol PairTraffic: AnyObject, Sendable {
  /// A frame from the wire, numbered from 1, which the guest is about to get.
  func input(_ number: UInt64, _ frame: UnsafeRawBufferPointer)
  /// Whether there is room for more of that. If not, the wire is not read, and drops what it can't keep, as that of a slow card.
  var hasRoomForInput: Bool { get }
  /// What the guest sent: with the gate's token where it serves, without one where it follows.
  func output(_ token: UInt64?, _ frame: UnsafeRawBufferPointer, _ marking: Marking)
  /// What the guest that serves has sent, and is about to be put into the gate, is made of what the secondary has.
  /// - Returns: if it may leave early, how to ask whether the secondary, which is told, is sure to hear of it.
  func leavesEarly(_ frame: UnsafeRawBufferPointer) -> UInt64?
  /// The guest that serves begins a connection: the other needs to know its sequence numbers.
  func started(_ frame: UnsafeRawBufferPointer)
  /// The gate has no room: only a checkpoint makes some.
  func gateIsFull()
  /// There is no more input for the moment: what was told by now is needed.
  func flush()
  /// There is no more output for the moment.
  func outputEnded()
  /// The tap has gone for good.
  func wireLost()
}

extension PairTraffic {
  public func wireLost() {}
}
