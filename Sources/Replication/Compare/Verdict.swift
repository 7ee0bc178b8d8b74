/// One of the two that run the same input.
public enum Side: Int, Sendable, CaseIterable {
  case primary = 0
  case secondary = 1
}

/// How much a ``Comparator`` may hold. What goes over a limit asks for a checkpoint; nothing is dropped in silence.
public struct ComparatorLimits: Equatable, Sendable {
  /// TCP connections, and as many flows of datagrams.
  public var flows = 16384
  /// Bytes that one side may be ahead of the other in one flow; rounded up to a power of two in memory.
  public var bytesPerFlow = 4 << 20
  /// Frames in waiting in one flow.
  public var framesPerFlow = 8192
  /// Pieces that the secondary has said by code, and the primary not yet, in one flow.
  public var claimsPerFlow = 1024
  /// Holes in what one side has put out of a connection.
  public var holesPerFlow = 64
  /// Memory for bytes of all flows.
  public var bytes = 256 << 20
  /// Frames in waiting in all flows.
  public var frames = 65536
  /// Bytes kept of each connection after they were compared, to check retransmissions with. Kept while memory lasts.
  public var historyPerFlow = 16 << 10
  /// Frames in waiting that are compared whole (ARP, fragments), and their bytes.
  public var wholeFrames = 128
  public var wholeFrameBytes = 256 << 10

  public init() {}
}

/// What one more frame has shown.
public enum ComparisonOutcome: Equatable, Sendable {
  /// No difference. Which frames of the primary are equal now, ``Comparator/nextEqual()`` tells.
  case consistent
  /// The secondary says something else: only a checkpoint releases what the primary has sent in this flow.
  case mismatch(Mismatch)
  /// A limit is reached: only a checkpoint releases what could not be held.
  case overflow(Overflow)

  public struct Mismatch: Equatable, Sendable {
    public enum Reason: Equatable, Sendable {
      /// Other bytes.
      case payload
      /// SYN, FIN or RST at another place in the stream.
      case flags
      /// Sequence numbers out of any window, or a new connection while the old one is not compared to its end.
      case unknown
    }

    public var reason: Reason
    public var flow: FlowKey
    /// TCP: the sequence number of the first difference. Datagrams: the offset of it in the payload, in bytes.
    public var place: UInt32

    public init(reason: Reason, flow: FlowKey, place: UInt32) {
      self.reason = reason
      self.flow = flow
      self.place = place
    }
  }

  /// Which of the ``ComparatorLimits``.
  public enum Overflow: Equatable, Sendable {
    case flows
    case bytesPerFlow
    case framesPerFlow
    case holesPerFlow
    case bytes
    case frames
    case wholeFrames
  }
}

/// What is held at the moment, against the limits.
struct ComparatorBudget: Sendable {
  let limits: ComparatorLimits
  var frames = 0
  var bytes = 0

  init(limits: ComparatorLimits) { self.limits = limits }
}

/// How a flow answers; the ``Comparator`` adds the flow's name.
enum FlowOutcome {
  case consistent
  case mismatch(ComparisonOutcome.Mismatch.Reason, place: UInt32)
  case overflow(ComparisonOutcome.Overflow)
}

/// Tokens of the primary's frames that are equal, oldest first, until the caller takes them.
struct TokenQueue: Sendable {
  private var tokens: [UInt64] = []
  private var head = 0

  mutating func append(_ token: UInt64) { tokens.append(token) }

  mutating func next() -> UInt64? {
    guard head < tokens.count else { return nil }
    let token = tokens[head]
    head += 1
    if head == tokens.count {
      head = 0
      tokens.removeAll(keepingCapacity: true)
    }
    return token
  }

  mutating func removeAll() {
    head = 0
    tokens.removeAll(keepingCapacity: true)
  }
}
