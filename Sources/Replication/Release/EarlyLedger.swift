/// What a secondary was told that clients are told already, and what its own guest has said since the same checkpoint. While it
/// follows, it compares the one with the other itself and does not send the primary what is equal; a survivor must say the same
/// as was told, or that connection is over.
public struct EarlyLedger: ~Copyable, Sendable {
  /// Pieces told in an epoch, flows known, and bytes of own output kept between two checkpoints. A primary keeps within the
  /// first, and lets half of the last leave early.
  static let pieceLimit = 1 << 15
  static let ownLimit = 64 << 20

  /// What became of one piece.
  public enum Finding: Equatable, Sendable {
    case equal
    /// The guest has said something else, or it is not known any more what.
    case different(EarlyOutput)
  }

  struct Own {
    var sequence: UInt32
    var payload: Range<Int>
    var frame: [UInt8]
    var isWithheld: Bool
    var end: UInt32 { sequence &+ UInt32(payload.count) }

    func lies(in stretch: (start: UInt32, end: UInt32)) -> Bool {
      !isAfter(stretch.start, sequence) && !isAfter(end, stretch.end)
    }
  }

  struct Flow {
    /// Not compared yet, in the order of the stream.
    var told: [EarlyOutput] = []
    var wasTold = false
    var own: [Own] = []
    /// Stretches of the stream that have been compared: mostly one.
    var compared: [(start: UInt32, end: UInt32)] = []
    /// What was different, furthest on.
    var different: EarlyOutput?
    /// Before this, nothing is kept back.
    var askedUpTo: UInt32?
    /// What the primary waits to see acknowledged.
    var askedAcknowledgement: UInt32?
    /// How far the guest has acknowledged since the checkpoint.
    var acknowledged: UInt32?
    /// How far it has sent since the checkpoint; nil before it has sent anything.
    var sentUpTo: UInt32?
    /// What followed the last SYN that it sent.
    var start: UInt32?
    var newest: [UInt8]?
  }

  enum Item {
    case told(EarlyOutput)
    case asked(AskedOutput)
  }

  private var code: RecordCode
  /// The checkpoint from which the guest goes on.
  private var base: UInt64 = 0
  var flows: [FlowKey: Flow] = [:]
  /// Of what the guest says from here on something may be told.
  private var isKept = true
  /// Of epochs to which the guest has not come, and where the first of these in each flow begins.
  private var ahead: [(epoch: UInt64, item: Item)] = []
  var aheadFrom: [FlowKey: UInt32] = [:]
  var pieces = 0
  var ownBytes = 0
  /// Not everything that the guest has said is kept.
  private var hasForgotten = false
  private var equal: UInt64 = 0
  private var contradictions: [FlowKey] = []

  /// Of the secondary's side of a channel.
  public init(_ channel: Channel) { self.init(key: channel.keys.early) }

  init(key: SharedKey) { code = RecordCode(key) }

  // MARK: Following

  /// The primary has said that this is about to leave.
  /// - Returns: false when there is no room.
  public mutating func add(_ output: EarlyOutput, epoch: UInt64) -> Bool {
    guard epoch > base else { return true }
    // The next epoch's may come before the checkpoint in between.
    guard pieces < 2 * Self.pieceLimit else { return false }
    pieces += 1
    if epoch == base + 1 {
      take(output)
    } else {
      ahead.append((epoch, .told(output)))
      if aheadFrom[output.flow] == nil { aheadFrom[output.flow] = output.sequence }
    }
    return true
  }

  /// The primary waits for this.
  /// - Returns: frames for it, or nil when there is no room.
  public mutating func ask(_ output: AskedOutput, epoch: UInt64) -> [[UInt8]]? {
    guard epoch > base else { return [] }
    if epoch == base + 1 { return take(output) }
    guard ahead.count < 2 * Self.pieceLimit else { return nil }
    ahead.append((epoch, .asked(output)))
    return []
  }

  /// The secondary has checkpoint `epoch` whole: what left before it is what a survivor goes on from.
  public mutating func received(epoch: UInt64) {
    ahead.removeAll { $0.epoch <= epoch }
    if base < epoch { for key in flows.keys { flows[key]?.told.removeAll(keepingCapacity: true) } }
    count()
  }

  /// The guest goes on from checkpoint `epoch`, and has said nothing yet.
  /// - Parameter search: the primary's in the epoch after it; what the guest says is kept unless it is ``EarlySearch/off``.
  public mutating func loaded(epoch: UInt64, search: EarlySearch = .on) {
    base = epoch
    isKept = search != .off
    flows.removeAll(keepingCapacity: true)
    contradictions.removeAll()
    equal = 0
    ownBytes = 0
    // Should it be told of some all the same.
    hasForgotten = !isKept
    var rest: [(epoch: UInt64, item: Item)] = []
    for (at, item) in ahead where at > epoch {
      switch item {
      case _ where at > epoch + 1: rest.append((at, item))
      case .told(let output): take(output)
      case .asked(let output): _ = take(output)
      }
    }
    ahead = rest
    count()
  }

  /// The guest has said this, with `header` bytes in front; numbered as on the wire.
  /// - Parameter isMarked: the guest has said of all of it what it is made of, so that the primary may let it out early.
  /// - Returns: whether the primary has to see it. It need not if it is compared here, nor before it has said what becomes of its
  ///   own frame.
  public mutating func said(_ bytes: [UInt8], header: Int, isMarked: Bool) -> Bool {
    guard isKept else { return true }
    let frame = unsafe bytes.withUnsafeBytes { unsafe Frame($0, header: header) }
    guard frame.kind == .tcp else { return true }
    guard flows[frame.key] != nil || flows.count < Self.pieceLimit else {
      if !frame.payload.isEmpty { hasForgotten = true }
      return true
    }
    let isPlain = frame.flags.isDisjoint(with: [.syn, .fin, .rst])
    let payload = frame.payload.lowerBound + header..<frame.payload.upperBound + header
    var own = Own(
      sequence: frame.sequence, payload: payload, frame: bytes, isWithheld: isMarked && isPlain)
    let isKept = ownBytes + bytes.count <= Self.ownLimit
    if !payload.isEmpty { if isKept { ownBytes += bytes.count } else { hasForgotten = true } }
    return change(frame.key) { flow, ledger in
      flow.newest = bytes
      if frame.flags.contains(.ack), flow.acknowledged.map({ isAfter(frame.acknowledgement, $0) }) != false {
        flow.acknowledged = frame.acknowledgement
      }
      ledger.sent(frame, &flow)
      guard !payload.isEmpty, isKept else { return true }
      if let asked = flow.askedUpTo, isAfter(asked, frame.sequence) { own.isWithheld = false }
      flow.own.append(own)
      ledger.compare(&flow)
      guard isPlain && flow.compared.contains(where: { own.lies(in: $0) }) || own.isWithheld else { return true }
      // The primary may wait for no more than what it acknowledges.
      guard let asked = flow.askedAcknowledgement, !isAfter(asked, flow.acknowledged ?? asked &- 1) else {
        return false
      }
      flow.askedAcknowledgement = nil
      return true
    }
  }

  /// Flows in which the guest has said something else than was told; each once since the checkpoint from which it goes on.
  public mutating func takeContradictions() -> [FlowKey] {
    defer { contradictions.removeAll() }
    return contradictions
  }

  /// The checkpoint from which the guest goes on.
  public var checkpoint: UInt64 { base }

  private mutating func take(_ output: EarlyOutput) {
    change(output.flow) { flow, ledger in
      flow.wasTold = true
      flow.told.append(output)
      ledger.compare(&flow)
    }
  }

  private mutating func take(_ asked: AskedOutput) -> [[UInt8]] {
    guard flows[asked.flow] != nil || flows.count < Self.pieceLimit else { return [] }
    return change(asked.flow) { flow, ledger in
      if flow.askedUpTo.map({ isAfter(asked.end, $0) }) != false { flow.askedUpTo = asked.end }
      var frames: [[UInt8]] = []
      for index in flow.own.indices where flow.own[index].isWithheld && isAfter(asked.end, flow.own[index].sequence) {
        flow.own[index].isWithheld = false
        frames.append(flow.own[index].frame)
      }
      if let known = flow.acknowledged, !isAfter(asked.acknowledgement, known) {
        // The newest acknowledges most, but for what has come out of turn.
        if frames.isEmpty, let newest = flow.newest { frames.append(newest) }
        flow.askedAcknowledgement = nil
      } else {
        flow.askedAcknowledgement = asked.acknowledgement
      }
      return frames
    }
  }

  private mutating func change<R>(_ key: FlowKey, _ body: (inout Flow, inout EarlyLedger) -> R) -> R {
    // Taken out and put back: what is in two places would be copied to be changed.
    var flow = Flow()
    if let place = flows.index(forKey: key) { swap(&flow, &flows.values[place]) }
    let result = body(&flow, &self)
    flows[key] = flow
    return result
  }

  // MARK: Comparing

  /// Compares what can be compared by now. What the guest has not said yet stays, for another time.
  private mutating func compare(_ flow: inout Flow) {
    guard !flow.told.isEmpty, !flow.own.isEmpty else { return }
    var left: [EarlyOutput] = []
    for output in flow.told {
      guard let isEqual = isEqual(output, flow.own) else {
        left.append(output)
        continue
      }
      pieces -= 1
      if isEqual {
        equal += 1
      } else {
        if flow.different == nil { contradictions.append(output.flow) }
        if flow.different.map({ isAfter(output.end, $0.end) }) != false { flow.different = output }
      }
      if let last = flow.compared.indices.last, flow.compared[last].end == output.sequence {
        flow.compared[last].end = output.end
      } else {
        flow.compared.append((output.sequence, output.end))
      }
    }
    flow.told = left
    let compared = flow.compared
    flow.own.removeAll { own in
      let isDone = compared.contains { own.lies(in: $0) }
      if isDone { ownBytes -= own.frame.count }
      return isDone
    }
  }

  /// Whether the guest has said a piece alike, whatever its segmentation; nil when it has not said all of it.
  private mutating func isEqual(_ output: EarlyOutput, _ own: [Own]) -> Bool? {
    // As it almost always is.
    if let whole = own.last(where: { $0.sequence == output.sequence && $0.payload.count == Int(output.count) }) {
      return unsafe whole.frame.withUnsafeBytes {
        unsafe code.code(number: output.number, UnsafeRawBufferPointer(rebasing: $0[whole.payload]))
      } == output.code
    }
    var bytes: [UInt8] = []
    while bytes.count < Int(output.count) {
      let next = output.sequence &+ UInt32(bytes.count)
      guard let piece = own.last(where: { next &- $0.sequence < UInt32($0.payload.count) }) else { return nil }
      let from = piece.payload.lowerBound + Int(next &- piece.sequence)
      bytes += piece.frame[from..<min(piece.payload.upperBound, from + Int(output.count) - bytes.count)]
    }
    return unsafe bytes.withUnsafeBytes { unsafe code.code(number: output.number, $0) } == output.code
  }

  private mutating func count() {
    pieces = 0
    aheadFrom.removeAll(keepingCapacity: true)
    for (_, item) in ahead {
      guard case .told(let output) = item else { continue }
      pieces += 1
      if aheadFrom[output.flow] == nil { aheadFrom[output.flow] = output.sequence }
    }
    for flow in flows.values { pieces += flow.told.count }
  }

  // MARK: Taking over

  /// Whether nothing that was told is left to be compared.
  public var isEmpty: Bool { pieces == 0 }

  /// The survivor's guest goes on alone: whatever was told concerns it. What was found since the checkpoint or the last time; what the
  /// guest has not said yet stays, for another time.
  public mutating func settle() -> [Finding] {
    for (_, item) in ahead { if case .told(let output) = item { take(output) } }
    ahead = []
    var findings = [Finding](repeating: .equal, count: Int(min(equal, 1 << 20)))
    equal = 0
    for key in flows.keys {
      change(key) { flow, ledger in
        ledger.compare(&flow)
        if let different = flow.different.take() { findings.append(.different(different)) }
        guard ledger.hasForgotten else { return }
        findings += flow.told.map { .different($0) }
        flow.told = []
      }
    }
    count()
    return findings
  }

  /// A frame of the guest's in this flow, as it was given to ``said(_:header:isMarked:)``.
  public func template(_ flow: FlowKey) -> [UInt8]? { flows[flow]?.newest }

  /// How far the guest has acknowledged what came for it, in flows of which something left early; nil where it has not at all.
  public var acknowledgements: [FlowKey: UInt32?] {
    var result: [FlowKey: UInt32?] = [:]
    // More than are kept: of none it is known that it has not.
    guard flows.count < Self.pieceLimit else { return result }
    for (key, flow) in flows where flow.wasTold { result.updateValue(flow.acknowledged, forKey: key) }
    return result
  }

  /// Whether something of this flow was told since the checkpoint.
  public func wasTold(_ flow: FlowKey) -> Bool { flows[flow]?.wasTold == true }

  /// What was told of a flow and not compared yet is not to be compared any more.
  /// - Parameter isDifferent: it counts as different.
  public mutating func drop(_ flow: FlowKey, isDifferent: Bool) {
    change(flow) { flow, ledger in
      if isDifferent { flow.different = flow.told.last ?? flow.different }
      ledger.pieces -= flow.told.count
      flow.told = []
    }
  }

  /// Whether a frame of the guest's says some of a piece that it has not said all of: it is not known yet whether that is what
  /// clients were told.
  /// - Returns: where the first such piece of the flow begins; nil if it says nothing of one.
  public func uncertain(_ frame: Frame) -> UInt32? {
    guard frame.kind == .tcp, !frame.payload.isEmpty, let flow = flows[frame.key] else { return nil }
    let isPart = flow.told.contains {
      $0.sequence &- frame.sequence < UInt32(frame.payload.count) || frame.sequence &- $0.sequence < $0.count
    }
    return isPart ? flow.told.first?.sequence : nil
  }

  /// Whether something of this flow is still to be compared.
  public func awaits(_ flow: FlowKey) -> Bool { flows[flow]?.told.isEmpty == false }
}

/// Of two numbers of one sequence: whether the first is the later.
func isAfter(_ a: UInt32, _ b: UInt32) -> Bool { Int32(bitPattern: a &- b) > 0 }
