/// A frame that waits for its counterpart.
struct PendingFrame: Sendable {
  /// The caller's name for it; of no meaning for a frame of the secondary.
  var token: UInt64
  /// The positions that it takes in its flow: payload bytes, and one each for SYN and FIN.
  var range: Range<Int64>
  var acknowledgement: UInt32 = 0
  var needsAcknowledgement = false
  var isReset = false
}

/// First in, first out, in a buffer that is used again: nothing is allocated once it has grown to what a flow needs.
struct PendingQueue: Sendable {
  private static let kept = 64

  private var slots: [PendingFrame] = []
  private var head = 0
  private(set) var count = 0

  var isEmpty: Bool { count == 0 }
  var first: PendingFrame? { count == 0 ? nil : slots[head] }

  mutating func append(_ frame: PendingFrame) {
    if count == slots.count { grow(frame) }
    slots[(head + count) & (slots.count - 1)] = frame
    count += 1
  }

  mutating func removeFirst() {
    guard count > 0 else { return }
    head = (head + 1) & (slots.count - 1)
    count -= 1
    if count == 0 { removeAll() }
  }

  mutating func removeAll() {
    head = 0
    count = 0
    // Thousands of flows that were long once must not keep it all.
    if slots.count > Self.kept { slots = [] }
  }

  mutating func release() {
    slots = []
    removeAll()
  }

  private mutating func grow(_ filler: PendingFrame) {
    var larger = [PendingFrame](repeating: filler, count: max(4, slots.count * 2))
    for index in 0..<count { larger[index] = slots[(head + index) & (slots.count - 1)] }
    slots = larger
    head = 0
  }
}
