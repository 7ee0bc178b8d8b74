/// Compares what the guests of the primary and the secondary send, and tells which of the primary's frames the secondary
/// has said as well.
///
/// - TCP is compared as a byte stream a connection, whatever its segmentation; SYN, FIN and RST have their place in it.
///   A frame is equal only when the secondary has acknowledged as much to the client as it does.
/// - UDP, ICMP and other protocols over IP are compared by payload, in order, a flow.
/// - All else (ARP, fragments, malformed frames) is compared whole, in any order.
///
/// Not compared: link addresses, IP id, TTL and options, TCP window, options, PSH, URG, ECN, checksums. The secondary's
/// sequence numbers must have been mapped to the primary's (``SequenceMapper``). Frames of one flow become equal in the
/// order in which the primary sent them.
///
/// After a difference or an overflow the flow concerned waits for ``checkpoint()``; the others go on being compared.
///
/// It has no thread and no clock: calls are serialised by the caller, who also sees to a secondary that says nothing.
public struct Comparator: ~Copyable, Sendable {
  /// Frames handed in, by side, and differences found, since the start.
  public struct Counters: Equatable, Sendable {
    public var primaryFrames: UInt64 = 0
    public var secondaryFrames: UInt64 = 0
    public var mismatches: UInt64 = 0
    public var overflows: UInt64 = 0
  }

  /// Whether there has been a difference or an overflow since the last checkpoint.
  public private(set) var needsCheckpoint = false
  public private(set) var counters = Counters()

  private var budget: ComparatorBudget
  private var streams: FlowTable<StreamFlow>
  private var datagrams: FlowTable<DatagramFlow>
  private var window = FrameWindow()
  private var equal = TokenQueue()
  private var epoch: UInt64 = 0
  /// Of what the secondary says by code.
  private var codes = RecordCode(SharedKey([UInt8](repeating: 0, count: SharedKey.codeSize)))

  public init(limits: ComparatorLimits = ComparatorLimits()) {
    budget = ComparatorBudget(limits: limits)
    streams = FlowTable(capacity: min(limits.flows, 1 << 16))
    datagrams = FlowTable(capacity: min(limits.flows, 1 << 16))
  }

  /// Bytes of frames held, at most ``ComparatorLimits/bytes``.
  public var heldBytes: Int { budget.bytes }
  /// Frames in waiting, those compared whole not counted.
  public var heldFrames: Int { budget.frames }
  public var heldFlows: Int { streams.count + datagrams.count }

  /// A frame that the primary's guest has sent.
  ///
  /// - Parameters:
  ///   - frame: from its destination address on, without the virtio-net header.
  ///   - token: the caller's name for it; given back by ``nextEqual()`` once it is equal, and forgotten without a word
  ///     if the outcome is not `consistent`, if its flow has differed before, or at a checkpoint.
  public mutating func primary(_ frame: Span<UInt8>, token: UInt64) -> ComparisonOutcome {
    counters.primaryFrames &+= 1
    return put(.primary, frame, token: token)
  }

  /// A frame that the secondary's guest has sent, its sequence numbers mapped.
  public mutating func secondary(_ frame: Span<UInt8>) -> ComparisonOutcome {
    counters.secondaryFrames &+= 1
    return put(.secondary, frame, token: 0)
  }

  /// What the secondary says over this channel by code can be compared from here on.
  public mutating func begin(_ channel: Channel) { begin(key: channel.keys.output) }

  mutating func begin(key: SharedKey) { codes = RecordCode(key) }

  /// A piece of TCP that the secondary's guest has sent, its sequence numbers mapped, by its code.
  public mutating func secondary(_ piece: EarlyOutput, acknowledgement: UInt32) -> ComparisonOutcome {
    counters.secondaryFrames &+= 1
    let frame = Frame(piece, acknowledgement: acknowledgement)
    let (known, outcome) = stream(.secondary, frame)
    guard let slot = known else { return judged(outcome, frame) }
    let claimed = streams.flows[slot].claim(frame, piece, &codes, &budget)
    return judged(concluded(claimed, slot, .secondary, frame), frame)
  }

  /// A frame of TCP that the primary's guest has sent, and that the secondary compares with its own: here it counts as said
  /// by both, and has no token.
  public mutating func agree(_ bytes: Span<UInt8>) -> ComparisonOutcome {
    counters.primaryFrames &+= 1
    let frame = Frame(bytes)
    guard frame.kind == .tcp else { return .consistent }
    let (known, outcome) = stream(.primary, frame)
    guard let slot = known else { return judged(outcome, frame) }
    let agreed = streams.flows[slot].agree(frame, budget: budget)
    return judged(concluded(agreed, slot, .primary, frame), frame)
  }

  /// The token of a frame that has become equal, each once; nil when there are no more for now.
  public mutating func nextEqual() -> UInt64? { equal.next() }

  /// A frame that was given to both guests: tells when a connection is over. Without it, connections that have ended by
  /// FIN are forgotten only when there are too many.
  public mutating func input(_ bytes: Span<UInt8>) {
    let frame = Frame(bytes)
    // Requests end nothing: what answers a FIN comes without data, sooner or later.
    guard frame.kind == .tcp,
      frame.payload.isEmpty ? !frame.flags.isEmpty : !frame.flags.isDisjoint(with: [.fin, .rst]),
      let slot = streams.find(frame.key.reversed)
    else { return }
    guard streams.flows[slot].enter(epoch: epoch) else { return }
    if streams.flows[slot].observePeer(frame) { streams.remove(slot, budget: &budget) }
  }

  /// Both sides go on from the primary's state: all that is in waiting is forgotten, and what the primary has said until
  /// now counts as said by both.
  ///
  /// To be called at the cut, between the last frame of the primary before it and the first one after it; frames that
  /// the secondary sent before it loaded this state must not be handed in any more. Takes constant time.
  public mutating func checkpoint() {
    epoch += 1
    budget.frames = 0
    window.removeAll()
    equal.removeAll()
    needsCheckpoint = false
  }

  /// As new, but for the counters: there is another secondary, and nobody handed in what the primary has said while there was
  /// none. What a flow had come to before says nothing of where it stands now: a frame could be taken for a retransmission.
  public mutating func restart() {
    let counters = counters
    self = Comparator(limits: budget.limits)
    self.counters = counters
  }

  private mutating func put(_ side: Side, _ bytes: Span<UInt8>, token: UInt64) -> ComparisonOutcome {
    let frame = Frame(bytes)
    let outcome: FlowOutcome
    switch frame.kind {
    case .tcp: outcome = putStream(side, frame, bytes, token: token)
    case .datagram: outcome = putDatagram(side, frame, bytes, token: token)
    case .whole: outcome = window.put(side, bytes, token: token, equal: &equal, limits: budget.limits)
    }
    return judged(outcome, frame)
  }

  private mutating func judged(_ outcome: FlowOutcome, _ frame: Frame) -> ComparisonOutcome {
    switch outcome {
    case .consistent: return .consistent
    case .mismatch(let reason, let place):
      needsCheckpoint = true
      counters.mismatches &+= 1
      return .mismatch(.init(reason: reason, flow: frame.key, place: place))
    case .overflow(let overflow):
      needsCheckpoint = true
      counters.overflows &+= 1
      return .overflow(overflow)
    }
  }

  /// The flow of a frame, unless it has been broken off.
  private mutating func stream(_ side: Side, _ frame: Frame) -> (slot: Int?, outcome: FlowOutcome) {
    guard
      let slot = streams.find(frame.key)
        ?? streams.add(frame.key, limit: budget.limits.flows, epoch: epoch, budget: &budget)
    else { return (nil, .overflow(.flows)) }
    if streams.flows[slot].enter(epoch: epoch) { return (slot, .consistent) }
    streams.flows[slot].follow(side, frame)
    return (nil, .consistent)
  }

  private mutating func putStream(
    _ side: Side, _ frame: Frame, _ bytes: Span<UInt8>, token: UInt64
  ) -> FlowOutcome {
    let (known, early) = stream(side, frame)
    guard let slot = known else { return early }
    var outcome = streams.flows[slot].put(side, frame, bytes, token: token, budget: &budget)
    while case .overflow(.bytes) = outcome, shed(stream: slot, datagram: nil) {
      outcome = streams.flows[slot].put(side, frame, bytes, token: token, budget: &budget)
    }
    if case .consistent = outcome, side == .primary, streams.flows[slot].hasClaims {
      outcome = settleClaims(slot)
    }
    return concluded(outcome, slot, side, frame)
  }

  private mutating func settleClaims(_ slot: Int) -> FlowOutcome {
    streams.flows[slot].settleClaims(&codes, &budget)
  }

  private mutating func concluded(_ outcome: FlowOutcome, _ slot: Int, _ side: Side, _ frame: Frame) -> FlowOutcome {
    guard case .consistent = outcome else {
      streams.flows[slot].breakOff(&budget)
      streams.flows[slot].follow(side, frame)
      return outcome
    }
    if streams.flows[slot].takeEqual(into: &equal, &budget) { streams.remove(slot, budget: &budget) }
    return .consistent
  }

  private mutating func putDatagram(
    _ side: Side, _ frame: Frame, _ bytes: Span<UInt8>, token: UInt64
  ) -> FlowOutcome {
    guard
      let slot = datagrams.find(frame.key)
        ?? datagrams.add(frame.key, limit: budget.limits.flows, epoch: epoch, budget: &budget)
    else { return .overflow(.flows) }
    if datagrams.flows[slot].epoch != epoch { datagrams.flows[slot].restart(epoch: epoch) }
    if datagrams.flows[slot].isBroken { return .consistent }
    let payload = bytes.extracting(frame.payload)
    var outcome = datagrams.flows[slot].put(side, payload, token: token, equal: &equal, budget: &budget)
    while case .overflow(.bytes) = outcome, shed(stream: nil, datagram: slot) {
      outcome = datagrams.flows[slot].put(side, payload, token: token, equal: &equal, budget: &budget)
    }
    if case .consistent = outcome { return .consistent }
    datagrams.flows[slot].breakOff(&budget)
    return outcome
  }

  // What is kept of idle flows only serves to check retransmissions: it goes before anything is refused.
  private mutating func shed(stream: Int?, datagram: Int?) -> Bool {
    datagrams.shed(sparing: datagram, epoch: epoch, budget: &budget)
      || streams.shed(sparing: stream, epoch: epoch, budget: &budget)
  }
}
