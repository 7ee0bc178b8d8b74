import Testing

@testable import Pair

@Suite("Patience") struct PatienceTests {
  private var patience = Patience(shortest: 20_000_000)

  @Test mutating func growsByHalfEachTimeItWasTooShort_upToTheLongest() {
    patience.lengthen()
    #expect(patience.time == 30_000_000)
    for _ in 0..<10 { patience.lengthen() }
    #expect(patience.time == Patience.longest)
  }

  @Test mutating func shrinksByAnEighthWhileItIsLongEnough_downToTheShortest() {
    for _ in 0..<10 { patience.lengthen() }
    patience.shorten()
    #expect(patience.time == 87_500_000)
    for _ in 0..<50 { patience.shorten() }
    #expect(patience.time == 20_000_000)
  }

  @Test func isNeverLongerThanTheLongest() { #expect(Patience(shortest: .max).time == Patience.longest) }
}
