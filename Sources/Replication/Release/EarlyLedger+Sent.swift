/// How far the guest has sent. Clients may have acknowledged more: what left early, and it has yet to say.
extension EarlyLedger {
  /// How far a frame of this flow's client may acknowledge when the guest is given it, as the wire numbers it; nil where that does
  /// not matter, because the guest has said all that was told.
  ///
  /// It is as far as the guest has sent. Linux drops a segment that acknowledges more, and the client's bytes in it, which the client
  /// does not send again: the primary's guest has acknowledged them. With an older acknowledgement it takes them in (RFC 9293,
  /// 3.10.7.4).
  public func acknowledgeable(_ flow: FlowKey) -> UInt32? {
    let known = flows[flow]
    // Of two numbers the later. What the guest has sent since the checkpoint may be old; what was told is new, so that the guest
    // has sent as much by the checkpoint.
    guard let told = known?.told.first?.sequence ?? aheadFrom[flow] else { return nil }
    guard let sent = known?.sentUpTo, isAfter(sent, told) else { return told }
    return sent
  }

  /// Whether a client can have acknowledged this: it was told as much, or the guest has sent it.
  public func canAcknowledge(_ number: UInt32, _ flow: FlowKey) -> Bool {
    guard let known = flows[flow] else { return false }
    if let sent = known.sentUpTo, !isAfter(number, sent) { return true }
    // Mostly in the order of its numbers: the newest is the last.
    return known.told.reversed().contains { !isAfter(number, $0.end) }
  }

  /// The guest has sent this.
  mutating func sent(_ frame: Frame, _ flow: inout Flow) {
    guard !frame.flags.contains(.rst) else { return }
    let length = frame.payload.count + (frame.flags.isDisjoint(with: [.syn, .fin]) ? 0 : 1)
    let end = frame.sequence &+ UInt32(truncatingIfNeeded: length)
    if frame.flags.contains(.syn), flow.start != end { begin(at: end, &flow) }
    if flow.sentUpTo.map({ isAfter(end, $0) }) != false { flow.sentUpTo = end }
  }

  /// Another connection of the same name: the client of the one before is gone, whatever it was told.
  private mutating func begin(at start: UInt32, _ flow: inout Flow) {
    func isOld(_ sequence: UInt32) -> Bool { sequence &- start >= UInt32(Self.ownLimit) }
    pieces -= flow.told.count { isOld($0.sequence) }
    flow.told.removeAll { isOld($0.sequence) }
    for own in flow.own where isOld(own.sequence) { ownBytes -= own.frame.count }
    flow.own.removeAll { isOld($0.sequence) }
    flow.compared.removeAll { isOld($0.start) }
    flow.start = start
    flow.sentUpTo = nil
  }
}
