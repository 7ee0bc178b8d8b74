/// Frames that are compared whole, in any order: a frame of one side is equal to any of the other's with the same bytes.
struct FrameWindow: Sendable {
  private struct Slot {
    var side = Side.primary
    var token: UInt64 = 0
    var bytes: [UInt8] = []
    var isUsed = false
  }

  private var slots: [Slot] = []
  private var held = 0

  mutating func removeAll() {
    held = 0
    for index in slots.indices { slots[index].isUsed = false }
  }

  mutating func put(
    _ side: Side, _ frame: Span<UInt8>, token: UInt64, equal: inout TokenQueue, limits: ComparatorLimits
  ) -> FlowOutcome {
    var unused: Int?
    for index in slots.indices {
      if !slots[index].isUsed {
        if unused == nil { unused = index }
      } else if slots[index].side != side && slots[index].bytes.count == frame.count
        && isEqual(slots[index].bytes, frame)
      {
        equal.append(side == .primary ? token : slots[index].token)
        slots[index].isUsed = false
        held -= frame.count
        return .consistent
      }
    }
    guard held + frame.count <= limits.wholeFrameBytes else { return .overflow(.wholeFrames) }
    if unused == nil {
      guard slots.count < limits.wholeFrames else { return .overflow(.wholeFrames) }
      unused = slots.count
      slots.append(Slot())
    }
    guard let index = unused else { return .overflow(.wholeFrames) }
    held += frame.count
    slots[index].side = side
    slots[index].token = token
    slots[index].isUsed = true
    // A slot keeps its buffer: no more than one large frame each is ever held.
    slots[index].bytes.removeAll(keepingCapacity: slots[index].bytes.capacity <= 4096)
    slots[index].bytes.reserveCapacity(frame.count)
    for offset in 0..<frame.count { slots[index].bytes.append(frame[offset]) }
    return .consistent
  }

  private func isEqual(_ kept: [UInt8], _ frame: Span<UInt8>) -> Bool {
    for offset in 0..<frame.count where kept[offset] != frame[offset] { return false }
    return true
  }
}
