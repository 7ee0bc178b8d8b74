import Replication
import Testing

@Suite("Histogram") struct HistogramTests {
  @Test func empty_isAllZero() {
    let histogram = Histogram()
    #expect(histogram.count == 0 && histogram.max == 0 && histogram.quantile(0.5) == 0)
  }

  /// Every order of magnitude: what comes out is within 1 % of what went in.
  @Test(arguments: [0, 1, 63, 64, 65, 127, 128, 1000, 123_456, 9_999_999, 1 << 30, (1 << 40) - 1] as [UInt64])
  func singleValue_isFoundWithinOnePercent(value: UInt64) {
    var histogram = Histogram()
    histogram.record(value)
    for share in [0, 0.5, 0.99, 1] {
      let found = histogram.quantile(share)
      #expect(found <= value && Double(value - found) <= Double(value) / 100)
    }
    #expect(histogram.max == value && histogram.count == 1)
  }

  @Test func quantiles_ofRandomValues_areNearTheSortedOnes() {
    var random = Numbers(seed: 7)
    var histogram = Histogram()
    // Log-uniform, as times are.
    var values = (0..<20_000).map { _ in UInt64(1) << UInt64.random(in: 0..<36, using: &random) + random.next() % 1000 }
    for value in values { histogram.record(value) }
    values.sort()
    for share in [0.01, 0.1, 0.5, 0.9, 0.99, 0.999] {
      let exact = values[Int((share * Double(values.count)).rounded(.up)) - 1]
      let found = histogram.quantile(share)
      #expect(abs(Double(found) - Double(exact)) <= Double(exact) / 50 + 1, "\(share): \(found) for \(exact)")
    }
    #expect(histogram.quantile(1) <= histogram.max && histogram.max == values.last)
  }

  @Test func hugeValues_shareTheLastStep_andTheMaximumIsExact() {
    var histogram = Histogram()
    for value in [1 << 40, 1 << 50, UInt64.max] { histogram.record(value) }
    #expect(histogram.count == 3 && histogram.max == .max)
    #expect(histogram.quantile(0.5) >= 1 << 39)
  }

  @Test func copy_isAValue() {
    var one = Histogram()
    one.record(5)
    let other = one
    one.record(1000)
    #expect(other.count == 1 && other.max == 5 && one.count == 2)
  }
}
