/// Datagrams of one flow, compared by payload in the order in which they are sent.
///
/// Only one side is ahead at any time: what it has sent waits here, and the other's next is compared with the first.
struct DatagramFlow: ComparedFlow, Sendable {
  private var ring = ByteRing()
  private var waiting = PendingQueue()
  private var ahead = Side.primary
  private var end: Int64 = 0
  private(set) var isBroken = false
  private(set) var epoch: UInt64 = 0

  var memory: Int { ring.capacity }
  var isIdle: Bool { !isBroken && waiting.isEmpty }

  mutating func restart(epoch: UInt64) {
    self.epoch = epoch
    isBroken = false
    waiting.removeAll()
  }

  mutating func releaseMemory() {
    ring.release()
    waiting.release()
  }

  mutating func breakOff(_ budget: inout ComparatorBudget) {
    isBroken = true
    budget.frames -= waiting.count
    waiting.removeAll()
  }

  /// Adds a datagram of one side. If it answers `overflow(.bytes)`, nothing has changed and it may be tried again.
  mutating func put(
    _ side: Side, _ payload: Span<UInt8>, token: UInt64, equal: inout TokenQueue, budget: inout ComparatorBudget
  ) -> FlowOutcome {
    guard let first = waiting.first, ahead != side else {
      return keep(side, payload, token: token, budget: &budget)
    }
    let length = Int(first.range.upperBound - first.range.lowerBound)
    if length != payload.count {
      return .mismatch(.payload, place: UInt32(min(length, payload.count)))
    }
    if let index = ring.firstDifference(payload, at: first.range.lowerBound) {
      return .mismatch(.payload, place: UInt32(index))
    }
    waiting.removeFirst()
    budget.frames -= 1
    equal.append(ahead == .primary ? first.token : token)
    return .consistent
  }

  private mutating func keep(
    _ side: Side, _ payload: Span<UInt8>, token: UInt64, budget: inout ComparatorBudget
  ) -> FlowOutcome {
    if waiting.count >= budget.limits.framesPerFlow { return .overflow(.framesPerFlow) }
    if budget.frames >= budget.limits.frames { return .overflow(.frames) }
    let start = waiting.isEmpty ? 0 : end
    let low = waiting.first?.range.lowerBound ?? 0
    let top = start + Int64(payload.count)
    if top - low > budget.limits.bytesPerFlow { return .overflow(.bytesPerFlow) }
    if waiting.isEmpty { ring.restart(at: 0) } else { ring.moveLow(to: low) }
    if top - low > ring.capacity {
      let size = ByteRing.size(for: top - low, from: ring.capacity)
      let more = size - ring.capacity
      guard budget.bytes + more <= budget.limits.bytes else { return .overflow(.bytes) }
      budget.bytes += more
      ring.grow(to: size, keepingUpTo: start)
    }
    ring.store(payload, at: start)
    end = top
    ahead = side
    waiting.append(PendingFrame(token: token, range: start..<top))
    budget.frames += 1
    return .consistent
  }
}
