internal import StateCodec

/// Whether a primary looks for output that may leave early, in the epoch after a checkpoint. A secondary may be an epoch behind, and
/// keeps what its guest says in ``soon`` and ``on`` to compare it with what it is told.
public enum EarlySearch: UInt8, Sendable {
  /// It does not, and not in the next one either.
  case off
  /// It does in the next one.
  case soon
  case on
}

/// A piece of a TCP stream by its code, as the wire numbers it: what left a primary before its secondary had said as much, or what a
/// secondary's guest has sent, so that not every byte of it goes to the primary.
public struct EarlyOutput: Equatable, Sendable {
  public var flow: FlowKey
  public var sequence: UInt32
  public var count: UInt32
  /// UMAC-128 of the bytes, by the session's key for that direction; the nonce is ``number``.
  public var code: [UInt8]
  /// Counts these in one direction of one channel.
  public var number: UInt64
  /// What follows it.
  public var end: UInt32 { sequence &+ count }

  public init(flow: FlowKey, sequence: UInt32, count: UInt32, code: [UInt8], number: UInt64) {
    self.flow = flow
    self.sequence = sequence
    self.count = count
    self.code = code
    self.number = number
  }

  func put(into out: inout StateWriter) {
    flow.put(into: &out)
    out.put(sequence)
    out.put(count)
    out.put(number)
    out.put(code)
  }

  init(from reader: inout StateReader) throws(StateError) {
    flow = try FlowKey(from: &reader)
    sequence = try reader.get()
    count = try reader.get()
    number = try reader.get()
    code = try reader.get()
    guard code.count == RecordCode.size, count <= 1 << 16 else { throw .invalid("a piece of \(count) bytes") }
  }
}

/// A frame of TCP that a primary holds back until its secondary's guest has said as much: where it ends, and what it acknowledges.
/// A secondary sends nothing of its own accord that is to leave early.
public struct AskedOutput: Equatable, Sendable {
  public var flow: FlowKey
  public var end: UInt32
  public var acknowledgement: UInt32

  public init(flow: FlowKey, end: UInt32, acknowledgement: UInt32) {
    self.flow = flow
    self.end = end
    self.acknowledgement = acknowledgement
  }

  /// Nil for what is not TCP: all of that is sent anyway.
  /// - Parameter bytes: a frame with `header` bytes in front.
  public init?(_ bytes: UnsafeRawBufferPointer, header: Int) {
    let frame = unsafe Frame(bytes, header: header)
    guard frame.kind == .tcp else { return nil }
    self.init(
      flow: frame.key, end: frame.sequence &+ UInt32(frame.payload.count), acknowledgement: frame.acknowledgement)
  }

  func put(into out: inout StateWriter) {
    flow.put(into: &out)
    out.put(end)
    out.put(acknowledgement)
  }

  init(from reader: inout StateReader) throws(StateError) {
    self.init(flow: try FlowKey(from: &reader), end: try reader.get(), acknowledgement: try reader.get())
  }
}

/// Says what leaves early, for ``EarlyLedger``, and no more of it in an epoch than that keeps.
public struct EarlyTeller: ~Copyable, Sendable {
  private var coder: PieceCoder
  private var epoch: UInt64 = 0
  private var pieces = 0
  private var bytes = 0

  /// Of the primary's side of a channel.
  public init(_ channel: Channel) { self.init(key: channel.keys.early) }

  init(key: SharedKey) { coder = PieceCoder(key: key) }

  /// - Parameter bytes: a frame of `epoch`, with `header` bytes in front.
  /// - Returns: nil for a frame that may not leave early: no TCP, or too much in this epoch.
  public mutating func output(_ bytes: UnsafeRawBufferPointer, header: Int, epoch: UInt64) -> EarlyOutput? {
    let frame = unsafe Frame(bytes, header: header)
    guard frame.kind == .tcp else { return nil }
    if epoch != self.epoch { (self.epoch, pieces, self.bytes) = (epoch, 0, 0) }
    pieces += 1
    self.bytes += bytes.count
    guard pieces <= EarlyLedger.pieceLimit, self.bytes <= EarlyLedger.ownLimit / 2 else { return nil }
    return unsafe coder.piece(frame, bytes, header: header)
  }
}

/// Makes the codes of one direction.
public struct PieceCoder: ~Copyable, Sendable {
  /// Payloads below this many bytes cost less than their codes.
  private static let shortest = 512
  private var code: RecordCode
  private var number: UInt64 = 0

  /// For what the secondary's guest sends over a channel.
  public init(_ channel: Channel) { self.init(key: channel.keys.output) }

  init(key: SharedKey) { code = RecordCode(key) }

  mutating func piece(_ frame: Frame, _ bytes: UnsafeRawBufferPointer, header: Int) -> EarlyOutput {
    let payload = frame.payload.lowerBound + header..<frame.payload.upperBound + header
    defer { number += 1 }
    let tag = unsafe code.code(number: number, UnsafeRawBufferPointer(rebasing: bytes[payload]))
    return EarlyOutput(
      flow: frame.key, sequence: frame.sequence, count: UInt32(payload.count), code: tag, number: number)
  }

  /// Nil for a frame that has to be sent as it is, because it is short or more than a piece of a stream.
  /// - Parameter isTold: whether the primary has said of this flow that something leaves early: of that it does not keep the bytes.
  public mutating func said(
    _ bytes: UnsafeRawBufferPointer, header: Int, isTold: (FlowKey) -> Bool
  ) -> (piece: EarlyOutput, acknowledgement: UInt32)? {
    guard bytes.count >= Self.shortest + header else { return nil }
    let frame = unsafe Frame(bytes, header: header)
    guard frame.kind == .tcp, frame.flags == .ack, frame.payload.count >= Self.shortest, !isTold(frame.key) else {
      return nil
    }
    return (unsafe piece(frame, bytes, header: header), frame.acknowledgement)
  }
}
