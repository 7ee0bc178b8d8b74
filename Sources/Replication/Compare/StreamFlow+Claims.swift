/// What the secondary says by code, in place of the bytes.
extension StreamFlow {
  /// A piece of the secondary's by its code. It counts as said once the primary has said the same; until then it takes a frame of
  /// the budget, and no bytes.
  mutating func claim(
    _ frame: Frame, _ piece: EarlyOutput, _ codes: inout RecordCode, _ budget: inout ComparatorBudget
  ) -> FlowOutcome {
    if !hasStarted {
      start(at: frame.sequence, syn: false)
    } else if syn != Self.none && !halves[1].hasSyn {
      // As in ``put(_:_:_:token:budget:)``: the last words of an earlier connection.
      return .consistent
    }
    let start = position(of: frame.sequence)
    let range = start..<start + Int64(frame.payload.count)
    guard start >= floor - Self.largestWindow else { return .mismatch(.unknown, place: frame.sequence) }
    if let place = differentFlags(1, frame, start: start, dataEnd: range.upperBound) {
      return .mismatch(.flags, place: sequence(at: place))
    }
    halves[1].isSeen = true
    halves[1].acknowledge(frame.acknowledgement)
    if range.isEmpty || halves[1].coverage.contains(range) { return .consistent }
    if claims.count >= budget.limits.claimsPerFlow { return .overflow(.framesPerFlow) }
    if budget.frames >= budget.limits.frames { return .overflow(.frames) }
    budget.frames += 1
    claims.append(Claim(range: range, number: piece.number, code: piece.code))
    return settleClaims(&codes, &budget)
  }

  var hasClaims: Bool { !claims.isEmpty }

  /// Compares what was claimed with what the primary has said by now.
  mutating func settleClaims(_ codes: inout RecordCode, _ budget: inout ComparatorBudget) -> FlowOutcome {
    var index = 0
    while index < claims.count {
      let claim = claims[index]
      if !halves[1].coverage.contains(claim.range) {
        guard halves[0].coverage.contains(claim.range) else {
          index += 1
          continue
        }
        // Its bytes are gone where it repeats what was compared long ago, or is to leave early.
        guard ring.holds(claim.range), !agreed.contains(where: { $0.overlaps(claim.range) }) else {
          return .mismatch(.unknown, place: sequence(at: claim.range.lowerBound))
        }
        let code = unsafe ring.withBytes(claim.range) { unsafe codes.code(number: claim.number, $0, $1) }
        guard code == claim.code else {
          return .mismatch(.payload, place: sequence(at: claim.range.lowerBound))
        }
        cover(1, claim.range)
        if halves[1].coverage.islands.count > budget.limits.holesPerFlow { return .overflow(.holesPerFlow) }
      }
      claims.remove(at: index)
      budget.frames -= 1
    }
    return .consistent
  }
}
