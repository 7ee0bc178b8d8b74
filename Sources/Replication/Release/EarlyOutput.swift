internal import StateCodec

/// A piece of a TCP stream that left a primary before its secondary had said as much, as the wire numbers it.
public struct EarlyOutput: Equatable, Sendable {
  public var flow: FlowKey
  public var sequence: UInt32
  public var count: UInt32
  /// UMAC-128 of the bytes, by the session's key for this; the nonce is ``number``.
  public var code: [UInt8]
  /// Counts what left early over one channel.
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

/// Says what leaves early, for ``EarlyLedger``.
public struct EarlyTeller: ~Copyable, Sendable {
  private var code: RecordCode
  private var number: UInt64 = 0

  /// Of the primary's side of a channel.
  public init(_ channel: Channel) { self.init(key: channel.keys.early) }

  init(key: SharedKey) { code = RecordCode(key) }

  /// - Parameter bytes: a frame with `header` bytes in front.
  /// - Returns: nil for a frame that is no TCP.
  public mutating func output(_ bytes: UnsafeRawBufferPointer, header: Int) -> EarlyOutput? {
    guard bytes.count > header else { return nil }
    let frame = unsafe bytes.withMemoryRebound(to: UInt8.self) { bytes in
      unsafe Frame(Span(_unsafeElements: UnsafeBufferPointer(rebasing: bytes[header...])))
    }
    guard frame.kind == .tcp else { return nil }
    let payload = frame.payload.lowerBound + header..<frame.payload.upperBound + header
    defer { number += 1 }
    let tag = unsafe code.code(number: number, UnsafeRawBufferPointer(rebasing: bytes[payload]))
    return EarlyOutput(
      flow: frame.key, sequence: frame.sequence, count: UInt32(payload.count), code: tag, number: number)
  }
}

/// What a secondary was told that clients have been told already, and what its own guest has said since the same checkpoint:
/// a survivor must say the same, or that connection is over.
public struct EarlyLedger: ~Copyable, Sendable {
  /// Pieces and bytes of own output that are kept between two checkpoints; a primary keeps within them.
  static let pieceLimit = 1 << 15
  static let ownLimit = 2 * OutputGate.earlyLimit

  /// What became of one piece.
  public enum Finding: Equatable, Sendable {
    case equal
    /// The survivor's guest has said something else, or it is not known any more what.
    case different(EarlyOutput)
  }

  private var code: RecordCode
  private var told: [(epoch: UInt64, output: EarlyOutput)] = []
  private var own: [FlowKey: [(sequence: UInt32, payload: Range<Int>, frame: [UInt8])]] = [:]
  private var ownBytes = 0
  /// How far the guest has acknowledged since the checkpoint.
  private var acknowledged: [FlowKey: UInt32] = [:]
  /// Not everything that the guest has said is kept.
  private var hasForgotten = false

  /// Of the secondary's side of a channel.
  public init(_ channel: Channel) { self.init(key: channel.keys.early) }

  init(key: SharedKey) { code = RecordCode(key) }

  public var isEmpty: Bool { told.isEmpty }

  /// The primary has said that this is about to leave.
  /// - Returns: false when there is no room.
  public mutating func add(_ output: EarlyOutput, epoch: UInt64) -> Bool {
    guard told.count < Self.pieceLimit else { return false }
    told.append((epoch, output))
    return true
  }

  /// The guest goes on from checkpoint `epoch`.
  public mutating func loaded(epoch: UInt64) {
    told.removeAll { $0.epoch <= epoch }
    own.removeAll(keepingCapacity: true)
    acknowledged.removeAll(keepingCapacity: true)
    ownBytes = 0
    hasForgotten = false
  }

  /// The guest has said this, with `header` bytes in front; numbered as on the wire.
  public mutating func said(_ bytes: [UInt8], header: Int) {
    guard bytes.count > header else { return }
    let frame = Frame(bytes.span.extracting(header...))
    guard frame.kind == .tcp else { return }
    if frame.flags.contains(.ack), acknowledged.count < Self.pieceLimit || acknowledged[frame.key] != nil {
      let known = acknowledged[frame.key] ?? frame.acknowledgement
      acknowledged[frame.key] =
        Int32(bitPattern: frame.acknowledgement &- known) < 0 ? known : frame.acknowledgement
    }
    guard !frame.payload.isEmpty else { return }
    guard ownBytes + bytes.count <= Self.ownLimit else { return hasForgotten = true }
    ownBytes += bytes.count
    let payload = frame.payload.lowerBound + header..<frame.payload.upperBound + header
    own[frame.key, default: []].append((frame.sequence, payload, bytes))
  }

  /// Compares what can be compared by now. What the guest has not said yet stays, for another time.
  public mutating func settle() -> [Finding] {
    var findings: [Finding] = []
    var left: [(epoch: UInt64, output: EarlyOutput)] = []
    for (epoch, output) in told {
      if let bytes = assemble(output) {
        let isEqual = unsafe bytes.withUnsafeBytes { unsafe code.code(number: output.number, $0) } == output.code
        findings.append(isEqual ? .equal : .different(output))
      } else if hasForgotten {
        findings.append(.different(output))
      } else {
        left.append((epoch, output))
      }
    }
    told = left
    return findings
  }

  /// A frame of the guest's in this flow, as it was given to ``said(_:header:)``.
  public func template(_ flow: FlowKey) -> [UInt8]? { own[flow]?.last?.frame }

  /// How far the guest has acknowledged what came for it, in flows of which something left early; nil where it has not at all.
  public var acknowledgements: [FlowKey: UInt32?] {
    var result: [FlowKey: UInt32?] = [:]
    // More than are kept: of none it is known that it has not.
    guard acknowledged.count < Self.pieceLimit else { return result }
    for (_, output) in told { result.updateValue(acknowledged[output.flow], forKey: output.flow) }
    return result
  }

  /// Whether something of this flow is still to be compared.
  public func awaits(_ flow: FlowKey) -> Bool { told.contains { $0.output.flow == flow } }

  /// A piece as the guest has said it, whatever its segmentation; nil when it has not said all of it.
  private func assemble(_ output: EarlyOutput) -> [UInt8]? {
    guard let said = own[output.flow] else { return nil }
    var bytes: [UInt8] = []
    while bytes.count < Int(output.count) {
      let next = output.sequence &+ UInt32(bytes.count)
      guard let piece = said.first(where: { next &- $0.sequence < UInt32($0.payload.count) }) else { return nil }
      let from = piece.payload.lowerBound + Int(next &- piece.sequence)
      bytes += piece.frame[from..<min(piece.payload.upperBound, from + Int(output.count) - bytes.count)]
    }
    return bytes
  }
}
