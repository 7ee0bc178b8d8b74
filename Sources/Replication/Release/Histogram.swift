/// How values are spread, in fixed memory: 64 steps a power of two, so that a quantile is off by less than 1 %. A value;
/// recording allocates nothing.
public struct Histogram: Sendable {
  private static let stepBits = 6
  private static let steps = 1 << stepBits
  /// The first bit that counts no longer: beyond 2^40 (18 minutes in nanoseconds) all values share the last step.
  private static let topBit = 40

  private var counts = InlineArray<2240, UInt32>(repeating: 0)
  public private(set) var count: UInt64 = 0
  public private(set) var max: UInt64 = 0

  public init() {}

  public mutating func record(_ value: UInt64) {
    counts[Self.index(value)] &+= 1
    count += 1
    max = Swift.max(max, value)
  }

  /// The value that a share of all values, 0 to 1, does not exceed; 0 when there are none.
  public func quantile(_ share: Double) -> UInt64 {
    guard count > 0 else { return 0 }
    let rank = Swift.max(1, UInt64((Swift.min(Swift.max(share, 0), 1) * Double(count)).rounded(.up)))
    var passed: UInt64 = 0
    for index in counts.indices {
      passed += UInt64(counts[index])
      if passed >= rank { return Swift.min(Self.middle(index), max) }
    }
    return max
  }

  /// Small values have a step each; above, the bits behind the highest one choose among the steps of its power of two.
  private static func index(_ value: UInt64) -> Int {
    guard value >= UInt64(steps) else { return Int(value) }
    let top = 63 - value.leadingZeroBitCount
    guard top < topBit else { return (topBit - stepBits + 1) * steps - 1 }
    let shift = top - stepBits
    return (shift + 1) * steps + Int(value >> UInt64(shift)) - steps
  }

  private static func middle(_ index: Int) -> UInt64 {
    guard index >= steps else { return UInt64(index) }
    let shift = UInt64(index / steps - 1)
    return UInt64(index % steps + steps) << shift + (1 << shift) / 2
  }
}
