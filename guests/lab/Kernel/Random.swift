/// xorshift64*: for sequence numbers and load patterns, not for secrets.
struct Random {
  var state: UInt64

  init(seed: UInt64) { state = seed == 0 ? 0x9e37_79b9_7f4a_7c15 : seed }

  mutating func next() -> UInt64 {
    state ^= state >> 12
    state ^= state << 25
    state ^= state >> 27
    return state &* 0x2545_f491_4f6c_dd1d
  }

  /// Below `bound` (> 0).
  mutating func next(below bound: UInt64) -> UInt64 { next().multipliedFullWidth(by: bound).high }
}

nonisolated(unsafe) var systemRandom = Random(seed: 1)

@c(lab_random)
func lwipRandom() -> UInt32 { UInt32(truncatingIfNeeded: systemRandom.next() >> 32) }
