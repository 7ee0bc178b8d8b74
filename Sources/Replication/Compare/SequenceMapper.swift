/// Maps the secondary guest's sequence numbers and TCP timestamps to the primary's, and back.
///
/// A secondary that accepts or opens a connection by itself chooses another initial sequence number than the primary,
/// which is the one that the client knows. So what the secondary's guest sends has its SEQ and TSval lowered by the
/// difference, and what it is given has ACK, SACK blocks and TSecr raised by it. Its ACK and outgoing SACK blocks speak
/// of the client's numbers, which both guests know alike.
///
/// The primary's numbers come from its own SYN (``primaryOutput(_:epoch:)``) alone. Whatever comes from the network may be forged: it
/// ends a mapping only where the guest acts on it, which is where it is exactly what the guest expects next (RFC 5961 §3.2).
/// A mapped TSval may lie behind the primary's by as much as the secondary's SYN was late: after a failover a client may
/// refuse segments (PAWS) for that long.
///
/// A plain value, no thread of its own: calls are serialised by the caller. Frames begin with the destination address;
/// those that are no TCP, or fragments, pass unchanged. Not mapped: TCP headers quoted in ICMP errors; connections that
/// sign their headers (RFC 2385, 5925).
public struct SequenceMapper: Sendable {
  public enum Outcome: Equatable, Sendable {
    /// Nothing to map.
    case unchanged
    case mapped
    /// A SYN of the secondary before the primary's is known: the frame is unchanged and to be handed in again after a
    /// ``primaryOutput(_:epoch:)`` of this connection, or given up at the next checkpoint.
    case awaitsPrimary
    /// More connections than ``capacity``: the frame cannot be mapped, only a checkpoint helps.
    case overflow
  }

  /// What the SYN of one side says.
  struct Start: Equatable, Sendable {
    var sequence: UInt32
    var timestamp: UInt32?
  }

  /// A connection, by the guest's key.
  struct Connection: Sendable {
    var primary: Start?
    var secondary: Start?
    /// The epoch in which the primary began it.
    var epoch: UInt64 = 0
    /// Ended by the guest: the position after its FIN, in the secondary's numbers.
    var finEnd: UInt32?
    var isFinAcknowledged = false
    var isPeerFin = false
    /// How far the guest has sent, and what it has acknowledged last.
    var sent: UInt32?
    var acknowledged: UInt32?
    /// The position after the peer's FIN, in the peer's numbers.
    var peerFinEnd: UInt32?
    /// Over on both sides; kept for late retransmissions until its place is needed.
    var isOver: Bool { isFinAcknowledged && isPeerFin }

    /// What the secondary's sequence numbers are ahead by; nil while one SYN is missing.
    var offset: UInt32? {
      guard let primary, let secondary else { return nil }
      return secondary.sequence &- primary.sequence
    }

    var timestampOffset: UInt32 {
      guard let primary = primary?.timestamp, let secondary = secondary?.timestamp else { return 0 }
      return secondary &- primary
    }

    var isIdentity: Bool { offset == 0 && timestampOffset == 0 }

    /// The guest has sent this, in its own numbers.
    mutating func saw(_ frame: Frame) {
      let controls = frame.flags.isDisjoint(with: [.syn, .fin]) ? 0 : 1
      let end = frame.sequence &+ UInt32(truncatingIfNeeded: frame.payload.count + controls)
      if sent.map({ isAfter(end, $0) }) ?? true { sent = end }
      if frame.flags.contains(.fin) { finEnd = end }
      guard frame.flags.contains(.ack) else { return }
      acknowledged = frame.acknowledgement
      if let peerFinEnd, !isAfter(peerFinEnd, frame.acknowledgement) { isPeerFin = true }
    }
  }

  /// The most connections kept.
  public let capacity: Int
  var connections: [FlowKey: Connection] = [:]
  private var isAlone = false

  public init(capacity: Int = 65536) { self.capacity = capacity }

  /// How many connections are known, mapped or about to be.
  public var count: Int { connections.count }

  /// A frame that the primary's guest has sent: only SYN and SYN-ACK matter, so that no others need be told.
  ///
  /// - Parameter epoch: the one in which it was sent.
  /// - Returns: `mapped` if the secondary's frames of this connection can be mapped now.
  public mutating func primaryOutput(_ bytes: Span<UInt8>, epoch: UInt64) -> Outcome {
    let frame = Frame(bytes)
    guard !isAlone, frame.kind == .tcp, frame.flags.contains(.syn) else { return .unchanged }
    let start = Start(sequence: frame.sequence, timestamp: Self.timestamp(of: frame, bytes))
    var connection = connections[frame.key] ?? Connection()
    if let known = connection.primary, known.sequence == start.sequence { return .unchanged }
    if connection.primary != nil { connection = Connection() }
    guard makePlace(for: frame.key) else { return .overflow }
    connection.primary = start
    connection.epoch = epoch
    connections[frame.key] = connection
    return connection.offset == nil ? .unchanged : .mapped
  }

  /// A frame that the secondary's guest sends, mapped to the primary's numbers in place.
  ///
  /// - Parameter isPartial: its checksum is the pseudo-header's only (VIRTIO_NET_HDR_F_NEEDS_CSUM).
  public mutating func outgoing(_ bytes: inout MutableSpan<UInt8>, isPartial: Bool) -> Outcome {
    let frame = Frame(bytes.span)
    guard frame.kind == .tcp else { return .unchanged }
    if frame.flags.contains(.syn) {
      if let outcome = begin(frame, timestamp: Self.timestamp(of: frame, bytes.span)) { return outcome }
    } else if connections.isEmpty {
      return .unchanged
    }
    guard let index = connections.index(forKey: frame.key), let offset = connections.values[index].offset else {
      return .unchanged
    }
    let connection = connections.values[index]
    // One that answers what does not fit into the connection has that one's numbers, and ends nothing.
    if frame.flags.contains(.rst) {
      if frame.sequence == connection.sent { connections.remove(at: index) }
    } else {
      connections.values[index].saw(frame)
    }
    if connection.isIdentity { return .unchanged }
    Self.rewriteOutgoing(&bytes, frame, connection, offset: offset, isPartial: isPartial)
    return .mapped
  }

  /// A frame of the client that is to be given to the secondary's guest, mapped to its numbers in place.
  ///
  /// - Parameter isPartial: its checksum is the pseudo-header's only (VIRTIO_NET_HDR_F_NEEDS_CSUM).
  public mutating func incoming(_ bytes: inout MutableSpan<UInt8>, isPartial: Bool) -> Outcome {
    if connections.isEmpty { return .unchanged }
    let frame = Frame(bytes.span)
    guard frame.kind == .tcp else { return .unchanged }
    let key = frame.key.reversed
    guard let index = connections.index(forKey: key), let offset = connections.values[index].offset else {
      return .unchanged
    }
    let connection = connections.values[index]
    let isLast = frame.flags.contains(.ack) && frame.acknowledgement &+ offset == connection.sent
    if frame.flags.contains(.rst) {
      // Before the guest has acknowledged anything, it goes by its own SYN (RFC 9293 §3.10.7.3).
      if connection.acknowledged.map({ $0 == frame.sequence }) ?? isLast { connections.remove(at: index) }
    } else if frame.flags.contains(.fin) {
      connections.values[index].peerFinEnd = frame.sequence &+ UInt32(frame.payload.count) &+ 1
    }
    if isLast, connection.finEnd == connection.sent { connections[key]?.isFinAcknowledged = true }
    if connection.isIdentity || !frame.flags.contains(.ack) { return .unchanged }
    Self.rewriteIncoming(&bytes, frame, connection, offset: offset, isPartial: isPartial)
    return .mapped
  }

  /// The secondary serves alone: what is mapped stays mapped until it ends, what begins now is not mapped.
  public mutating func failOver() {
    isAlone = true
    connections = connections.filter { $0.value.offset != nil && !$0.value.isIdentity }
  }

  /// The SYN of the secondary. Nil to go on and map it.
  private mutating func begin(_ frame: Frame, timestamp: UInt32?) -> Outcome? {
    var connection = connections[frame.key] ?? Connection()
    if connection.secondary?.sequence != frame.sequence {
      // Another connection with the ports of one that is over.
      if connection.secondary != nil { connection = Connection() }
      if isAlone {
        connections[frame.key] = nil
        return .unchanged
      }
      guard makePlace(for: frame.key) else { return .overflow }
      connection.secondary = Start(sequence: frame.sequence, timestamp: timestamp)
      connections[frame.key] = connection
    }
    return connection.offset == nil ? .awaitsPrimary : nil
  }

  private mutating func makePlace(for key: FlowKey) -> Bool {
    if connections.count < capacity || connections[key] != nil { return true }
    guard let over = connections.first(where: { $0.value.isOver || $0.value.isIdentity })?.key else { return false }
    connections[over] = nil
    return true
  }
}
