/// What a secondary's guest has sent lately. The primary may have died before it let the same out, and the guest, which takes
/// it for sent, would not repeat it before its own time-outs: so a takeover sends it, once more at the worst. TCP discards
/// duplicates, and UDP's clients must live with them.
struct RecentOutput {
  static let frames = 512
  static let bytes = 4 << 20
  /// Longer than a primary takes to be declared dead, in nanoseconds.
  private static let age: UInt64 = 250_000_000 * PeerWatch.stretch

  private var ring: [(time: UInt64, frame: [UInt8])] = []
  private var oldest = 0
  private var size = 0

  mutating func add(_ frame: [UInt8], now: UInt64) {
    while oldest < ring.count,
      ring.count - oldest >= Self.frames || size + frame.count > Self.bytes
        || now - min(ring[oldest].time, now) > Self.age
    {
      size -= ring[oldest].frame.count
      ring[oldest].frame = []
      oldest += 1
    }
    if oldest > Self.frames {
      ring.removeFirst(oldest)
      oldest = 0
    }
    ring.append((now, frame))
    size += frame.count
  }

  mutating func removeAll() {
    ring.removeAll(keepingCapacity: true)
    (oldest, size) = (0, 0)
  }

  /// The frames in their order; afterwards there are none.
  mutating func take(now: UInt64) -> [[UInt8]] {
    defer { removeAll() }
    return ring[oldest...].filter { now - min($0.time, now) <= Self.age }.map(\.frame)
  }
}
