/// How long output may wait for the secondary's before a checkpoint is asked for. A secondary that is only slow would be put
/// back before it ever answers, so each time it has been too short it grows; and shrinks again while it is long enough.
/// Nanoseconds.
struct Patience {
  static let longest: UInt64 = 100_000_000
  let shortest: UInt64
  private(set) var time: UInt64

  init(shortest: UInt64) {
    self.shortest = min(shortest, Self.longest)
    time = self.shortest
  }

  mutating func lengthen() { time = min(time + time / 2, Self.longest) }
  mutating func shorten() { time = max(time - time / 8, shortest) }
}
