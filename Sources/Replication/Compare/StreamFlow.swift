/// One TCP connection's output, compared as a byte stream whatever its segmentation.
///
/// Positions are sequence numbers carried on past 2^32; SYN and FIN take one each. Bytes of the side that is ahead are
/// kept in the ring until the other comes to them, and for a while after, to check retransmissions.
struct StreamFlow: ComparedFlow, Sendable {
  static let none = Int64.min
  /// The largest window that TCP allows (RFC 7323): older sequence numbers no client takes for a retransmission.
  static let largestWindow: Int64 = 1 << 30

  struct Half {
    var coverage = Coverage(reach: 0)
    var acknowledged: UInt32 = 0
    var hasAcknowledged = false
    var fin = none
    var reset = none
    var hasSyn = false
    var isSeen = false

    mutating func acknowledge(_ number: UInt32) {
      if hasAcknowledged(number) { return }
      hasAcknowledged = true
      acknowledged = number
    }

    func hasAcknowledged(_ number: UInt32) -> Bool {
      hasAcknowledged && Int32(bitPattern: number &- acknowledged) <= 0
    }
  }

  struct Claim {
    var range: Range<Int64>
    var number: UInt64
    var code: [UInt8]
  }

  var halves: [2 of Half] = [Half(), Half()]
  var hasStarted = false
  /// Every byte from `origin` to here has been compared.
  var floor: Int64 = 0
  /// The first position that was seen.
  private var origin: Int64 = 0
  /// What lies below `origin` is known to both sides: the connection was seen from its SYN, or there was a checkpoint.
  private var isSettled = false
  var syn = none
  private var peerFin: UInt32?
  private var isPeerDone = false
  var ring = ByteRing()
  /// Stretches beyond `floor` that count as said by both, and are not in the ring.
  var agreed: [Range<Int64>] = []
  private var pending = PendingQueue()
  /// What the secondary has said by code, and the primary not yet.
  var claims: [Claim] = []
  private(set) var isBroken = false
  /// How far the primary has come since the flow was broken off: from there both go on after the checkpoint.
  private var brokenTop: Int64 = 0
  private(set) var epoch: UInt64 = 0

  var memory: Int { ring.capacity }

  var isIdle: Bool {
    !isBroken && pending.isEmpty && claims.isEmpty && halves[0].coverage.end <= floor
      && halves[1].coverage.end <= floor
  }

  /// Over on both sides, so that the next frame with this key belongs to another connection.
  private var isFinished: Bool {
    guard isPeerDone || halves[0].reset != Self.none, isIdle else { return false }
    if halves[0].reset != Self.none && halves[0].reset == halves[1].reset { return true }
    guard isPeerDone else { return false }
    guard let end = peerFin else { return true }
    return halves[0].hasAcknowledged(end) && halves[1].hasAcknowledged(end)
  }

  /// Tells it of a checkpoint that it has not been told of.
  /// - Returns: whether it is compared; not if it was broken off.
  mutating func enter(epoch: UInt64) -> Bool {
    if self.epoch != epoch { restart(epoch: epoch) }
    return !isBroken
  }

  mutating func restart(epoch: UInt64) {
    self.epoch = epoch
    pending.removeAll()
    claims.removeAll()
    // What only the secondary has said, it has unsaid: it goes on from the primary's state.
    // What it has reset is over, and what comes next is another connection.
    guard hasStarted, halves[0].isSeen, halves[0].reset == Self.none else {
      hasStarted = false
      isBroken = false
      return
    }
    let top = isBroken ? max(halves[0].coverage.end, brokenTop) : halves[0].coverage.end
    // Kept bytes are the primary's only where there was no difference and no hole.
    if isBroken || halves[0].coverage.reach != top || !agreed.isEmpty { ring.restart(at: top) }
    agreed.removeAll()
    isBroken = false
    isSettled = true
    floor = top
    halves[0].coverage.restart(at: top)
    halves[0].hasSyn = true
    halves[1] = halves[0]
  }

  mutating func releaseMemory() {
    ring.release()
    ring.restart(at: floor)
  }

  /// What the primary has said in this frame counts as said by both.
  mutating func agree(_ frame: Frame, budget: borrowing ComparatorBudget) -> FlowOutcome {
    if !hasStarted { start(at: frame.sequence, syn: false) }
    let start = position(of: frame.sequence)
    let range = start..<start + Int64(frame.payload.count)
    guard start >= floor - Self.largestWindow else { return .mismatch(.unknown, place: frame.sequence) }
    halves[1].coverage.insert(range)
    if range.upperBound > floor { agreed.append(range) }
    note(0, frame, range: range)
    if halves[0].coverage.islands.count > budget.limits.holesPerFlow { return .overflow(.holesPerFlow) }
    return .consistent
  }

  mutating func breakOff(_ budget: inout ComparatorBudget) {
    isBroken = true
    brokenTop = halves[0].coverage.end
    budget.frames -= pending.count + claims.count
    pending.removeAll()
    claims.removeAll()
    agreed.removeAll()
  }

  /// A frame that is not compared any more before the checkpoint: what it shows of the primary's state only.
  mutating func follow(_ side: Side, _ frame: Frame) {
    guard side == .primary else { return }
    let isSyn = frame.flags.contains(.syn)
    if !hasStarted || isSyn && position(of: frame.sequence) != syn {
      start(at: frame.sequence, syn: isSyn)
      brokenTop = floor
    }
    let dataEnd = position(of: frame.sequence) + Int64(frame.payload.count) + (isSyn ? 1 : 0)
    let isFin = frame.flags.contains(.fin)
    if isFin { halves[0].fin = dataEnd }
    if frame.flags.contains(.rst) { halves[0].reset = dataEnd }
    brokenTop = max(brokenTop, dataEnd + (isFin ? 1 : 0))
    halves[0].isSeen = true
    if frame.flags.contains(.ack) { halves[0].acknowledge(frame.acknowledgement) }
  }

  /// Takes the names of the primary's frames that are equal by now, in the order in which they were sent.
  /// - Returns: whether the connection is over.
  mutating func takeEqual(into tokens: inout TokenQueue, _ budget: inout ComparatorBudget) -> Bool {
    while let frame = pending.first, isEqual(frame) {
      tokens.append(frame.token)
      pending.removeFirst()
      budget.frames -= 1
    }
    return isFinished
  }

  private func isEqual(_ frame: PendingFrame) -> Bool {
    if frame.needsAcknowledgement {
      // The client learns from the ACK what was received: the secondary must have said as much.
      guard halves[1].hasAcknowledged(frame.acknowledgement) else { return false }
    }
    if frame.isReset && halves[1].reset != frame.range.lowerBound { return false }
    if frame.range.isEmpty { return true }
    if frame.range.lowerBound < origin && !isSettled { return false }
    return halves[1].coverage.contains(frame.range)
  }

  /// What the peer sends to the guest ends the connection, too.
  /// - Returns: whether the connection is over.
  mutating func observePeer(_ frame: Frame) -> Bool {
    guard hasStarted else { return false }
    // Anybody can have sent it. The guest obeys only a reset that is exactly what it expects next (RFC 5961 §3.2), a FIN beyond what
    // it has acknowledged, and an acknowledgement of no more than it has sent.
    if frame.flags.contains(.rst) {
      isPeerDone = isPeerDone || halves[0].hasAcknowledged && halves[0].acknowledged == frame.sequence
      return isFinished
    }
    if frame.flags.contains(.fin) {
      let end = frame.sequence &+ UInt32(frame.payload.count) &+ 1
      if !halves[0].hasAcknowledged(end) || halves[0].acknowledged == end { peerFin = end }
    }
    let fin = halves[0].fin
    if peerFin != nil, fin != Self.none, fin == halves[1].fin, frame.flags.contains(.ack),
      position(of: frame.acknowledgement) == fin + 1
    {
      isPeerDone = true
    }
    return isFinished
  }

  func position(of sequence: UInt32) -> Int64 {
    floor + Int64(Int32(bitPattern: sequence &- UInt32(truncatingIfNeeded: floor)))
  }

  func sequence(at position: Int64) -> UInt32 { UInt32(truncatingIfNeeded: position) }

  mutating func start(at sequence: UInt32, syn isSyn: Bool) {
    // Far from 0, so that what is older has a position as well.
    floor = Int64(sequence) + 1 << 32
    origin = floor
    syn = isSyn ? floor : Self.none
    isSettled = isSyn
    hasStarted = true
    peerFin = nil
    isPeerDone = false
    ring.restart(at: floor)
    agreed.removeAll()
    for side in 0..<2 {
      halves[side] = Half(coverage: halves[side].coverage)
      halves[side].coverage.restart(at: floor)
    }
  }

  /// Adds a frame of one side. If it answers `overflow(.bytes)`, nothing has changed and it may be tried again.
  mutating func put(
    _ side: Side, _ frame: Frame, _ bytes: borrowing Span<UInt8>, token: UInt64, budget: inout ComparatorBudget
  ) -> FlowOutcome {
    let own = side.rawValue
    let isSyn = frame.flags.contains(.syn)
    if !hasStarted {
      start(at: frame.sequence, syn: isSyn)
    } else if isSyn && position(of: frame.sequence) != syn {
      guard isIdle else {
        let other = halves[1 - own]
        let isFirst = syn != Self.none && other.hasSyn && !halves[own].hasSyn
        return .mismatch(isFirst ? .flags : .unknown, place: frame.sequence)
      }
      start(at: frame.sequence, syn: true)
    } else if !isSyn && syn != Self.none && !halves[own].hasSyn {
      // The last words of the connection that had this key before; a secondary's may be forgotten.
      if side == .primary || frame.flags.contains(.rst) { return .mismatch(.flags, place: frame.sequence) }
      return .consistent
    }
    let start = position(of: frame.sequence)
    let data = start + (isSyn ? 1 : 0)
    let dataEnd = data + Int64(frame.payload.count)
    let end = dataEnd + (frame.flags.contains(.fin) ? 1 : 0)
    guard start >= floor - Self.largestWindow else { return .mismatch(.unknown, place: frame.sequence) }
    if side == .primary {
      if pending.count >= budget.limits.framesPerFlow { return .overflow(.framesPerFlow) }
      if budget.frames >= budget.limits.frames { return .overflow(.frames) }
    }
    if end > floor, let overflow = makeRoom(upTo: end, &budget) { return .overflow(overflow) }

    if let place = differentFlags(own, frame, start: start, dataEnd: dataEnd) {
      return .mismatch(.flags, place: sequence(at: place))
    }
    if isSyn {
      halves[own].hasSyn = true
      placeControl(at: start)
    }
    if let place = placePayload(bytes.extracting(frame.payload), at: data) {
      return .mismatch(.payload, place: sequence(at: place))
    }
    if end > dataEnd { placeControl(at: dataEnd) }
    note(own, frame, range: start..<end)
    if halves[own].coverage.islands.count > budget.limits.holesPerFlow { return .overflow(.holesPerFlow) }
    if side == .primary {
      budget.frames += 1
      pending.append(
        PendingFrame(
          token: token, range: start..<end, acknowledgement: frame.acknowledgement,
          needsAcknowledgement: frame.flags.contains(.ack), isReset: frame.flags.contains(.rst)))
    }
    return .consistent
  }

  private mutating func note(_ own: Int, _ frame: Frame, range: Range<Int64>) {
    cover(own, range)
    if frame.flags.contains(.ack) { halves[own].acknowledge(frame.acknowledgement) }
  }

  mutating func cover(_ own: Int, _ range: Range<Int64>) {
    halves[own].isSeen = true
    halves[own].coverage.insert(range)
    floor = max(floor, min(halves[0].coverage.reach, halves[1].coverage.reach))
    while let first = agreed.first, first.upperBound <= floor {
      // Nothing below it is looked at again: it is not there.
      ring.moveLow(to: first.upperBound)
      agreed.removeFirst()
    }
  }

  /// The end of a stream must be at the same position on both sides, and on one side always at the same.
  mutating func differentFlags(_ own: Int, _ frame: Frame, start: Int64, dataEnd: Int64) -> Int64? {
    let other = 1 - own
    if !frame.payload.isEmpty {
      for half in 0..<2 where halves[half].fin != Self.none && dataEnd > halves[half].fin { return halves[half].fin }
      if halves[other].reset != Self.none && dataEnd > halves[other].reset { return halves[other].reset }
    }
    if frame.flags.contains(.fin) {
      // Below the origin it was first sent before anything was seen.
      for half in 0..<2 where dataEnd >= origin {
        if halves[half].fin == Self.none
          ? halves[half].coverage.contains(dataEnd..<dataEnd + 1) : halves[half].fin != dataEnd
        {
          return dataEnd
        }
      }
      halves[own].fin = dataEnd
    }
    if frame.flags.contains(.rst) {
      if halves[other].reset != Self.none && halves[other].reset != start { return start }
      halves[own].reset = start
    }
    return nil
  }

  private mutating func placeControl(at position: Int64) {
    guard position >= ring.low, position >= floor else { return }
    for half in 0..<2 where halves[half].coverage.contains(position..<position + 1) { return }
    ring.storeZero(at: position)
  }

  /// Compares what either side has put out before, keeps the rest. Returns the position of the first difference.
  private mutating func placePayload(_ payload: Span<UInt8>, at position: Int64) -> Int64? {
    let end = position + Int64(payload.count)
    // Older bytes were compared when they were first sent, and are no longer kept.
    var cursor = max(position, ring.low)
    while cursor < end {
      if let skipped = agreed.first(where: { $0.contains(cursor) }) {
        cursor = skipped.upperBound
        continue
      }
      let primary = halves[0].coverage.stretch(at: cursor)
      let secondary = halves[1].coverage.stretch(at: cursor)
      let isKnown = primary.isCovered || secondary.isCovered
      let stop = min(end, primary.isCovered ? primary.until : secondary.isCovered ? secondary.until : end)
      let next = agreed.lazy.map(\.lowerBound).filter { $0 > cursor }.min() ?? end
      let until = min(next, isKnown ? stop : min(stop, primary.until, secondary.until))
      let piece = payload.extracting(Int(cursor - position)..<Int(until - position))
      if isKnown {
        if let index = ring.firstDifference(piece, at: cursor) { return cursor + Int64(index) }
      } else {
        ring.store(piece, at: cursor)
      }
      cursor = until
    }
    return nil
  }

  private mutating func makeRoom(
    upTo end: Int64, _ budget: inout ComparatorBudget
  ) -> ComparisonOutcome.Overflow? {
    let capacity = Int64(ring.capacity)
    if end - ring.low <= capacity { return nil }
    let needed = end - floor
    guard needed <= budget.limits.bytesPerFlow else { return .bytesPerFlow }
    let wanted = min(end - ring.low, Int64(budget.limits.historyPerFlow))
    if wanted > capacity && grow(toHold: max(wanted, needed), upTo: end, &budget) { return nil }
    if needed > capacity { return grow(toHold: needed, upTo: end, &budget) ? nil : .bytes }
    // In place of what was compared longest ago.
    ring.moveLow(to: end - capacity)
    return nil
  }

  private mutating func grow(toHold span: Int64, upTo end: Int64, _ budget: inout ComparatorBudget) -> Bool {
    let size = ByteRing.size(for: span, from: ring.capacity)
    let more = size - ring.capacity
    guard budget.bytes + more <= budget.limits.bytes else { return false }
    budget.bytes += more
    ring.moveLow(to: end - Int64(size))
    ring.grow(to: size, keepingUpTo: max(halves[0].coverage.end, halves[1].coverage.end))
    return true
  }
}
