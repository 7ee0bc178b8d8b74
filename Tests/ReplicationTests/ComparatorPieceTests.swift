import Testing

@testable import Replication

/// What the secondary says by code, in place of the bytes.
@Suite("Comparator, pieces by code") struct ComparatorPieceTests {
  static let key = SharedKey([UInt8](repeating: 7, count: 32))
  static let long = String(repeating: "0123456789abcdef", count: 64)

  private static func tcp(_ sequence: UInt32, _ text: String, ack: UInt32 = 5000, flags: UInt8 = TCPSegment.ack)
    -> [UInt8]
  {
    TCPSegment(sequence: sequence, acknowledgement: ack, flags: flags, payload: Array(text.utf8)).bytes
  }

  static func piece(_ frame: [UInt8], _ coder: inout PieceCoder) -> (piece: EarlyOutput, acknowledgement: UInt32)? {
    unsafe frame.withUnsafeBytes { unsafe coder.said($0, header: 0) { _ in false } }
  }

  enum Step {
    case p(String, at: UInt32, ack: UInt32 = 5000)
    case agreed(String, at: UInt32)
    case s(String, at: UInt32, ack: UInt32 = 5000)
    case checkpoint
  }

  /// - Returns: tokens that are equal by the end, the last difference, and frames still held.
  private func play(_ steps: [Step]) -> (equal: [UInt64], mismatch: ComparisonOutcome.Mismatch.Reason?, held: Int) {
    var comparator = Comparator()
    comparator.begin(key: Self.key)
    var coder = PieceCoder(key: Self.key)
    var (token, equal): (UInt64, [UInt64]) = (0, [])
    var mismatch: ComparisonOutcome.Mismatch.Reason?
    for step in steps {
      var outcome = ComparisonOutcome.consistent
      switch step {
      case .p(let text, let at, let ack):
        outcome = comparator.primary(Self.tcp(at, text, ack: ack).span, token: token)
        token += 1
      case .agreed(let text, let at): outcome = comparator.agree(Self.tcp(at, text).span)
      case .s(let text, let at, let ack):
        guard let said = Self.piece(Self.tcp(at, text, ack: ack), &coder) else { return ([], .unknown, -1) }
        outcome = comparator.secondary(said.piece, acknowledgement: said.acknowledgement)
      case .checkpoint: comparator.checkpoint()
      }
      if case .mismatch(let found) = outcome { mismatch = found.reason }
      while let token = comparator.nextEqual() { equal.append(token) }
    }
    return (equal, mismatch, comparator.heldFrames)
  }

  @Test func theSameBytes_areEqual_whoeverIsFirst() {
    #expect(play([.p(Self.long, at: 1), .s(Self.long, at: 1)]) == ([0], nil, 0))
    #expect(play([.s(Self.long, at: 1), .p(Self.long, at: 1)]) == ([0], nil, 0))
  }

  @Test func otherBytes_areADifference_whoeverIsFirst() {
    let other = "X" + Self.long.dropFirst()
    #expect(play([.p(Self.long, at: 1), .s(other, at: 1)]) == ([], .payload, 0))
    #expect(play([.s(other, at: 1), .p(Self.long, at: 1)]) == ([], .payload, 0))
  }

  @Test func aPieceOverSeveralSegments_countsOnceThePrimaryHasSaidAllOfIt() {
    let (a, b) = (String(Self.long.prefix(600)), String(Self.long.dropFirst(600)))
    #expect(play([.p(a, at: 1), .s(Self.long, at: 1)]) == ([], nil, 2))
    #expect(play([.p(a, at: 1), .s(Self.long, at: 1), .p(b, at: 601)]) == ([0, 1], nil, 0))
    #expect(play([.agreed("x", at: 0), .p(b, at: 601), .p(a, at: 1), .s(Self.long, at: 1)]) == ([0, 1], nil, 0))
  }

  @Test func itsAcknowledgement_counts() {
    #expect(play([.p(Self.long, at: 1, ack: 5001), .s(Self.long, at: 1, ack: 5000)]).equal == [])
    #expect(
      play([.p(Self.long, at: 1, ack: 5001), .s(Self.long, at: 1), .s(Self.long, at: 1, ack: 5001)]) == ([0], nil, 0))
  }

  @Test func whatIsSaidTwice_countsOnce() {
    #expect(play([.s(Self.long, at: 1), .s(Self.long, at: 1), .p(Self.long, at: 1)]) == ([0], nil, 0))
  }

  @Test func whatIsToLeaveEarly_hasNoBytesToCompareWith() {
    let half = String(Self.long.prefix(600))
    #expect(play([.agreed(half, at: 1), .s(half, at: 1)]) == ([], nil, 0))
    #expect(
      play([.p("a", at: 0), .agreed(half, at: 1), .p(Self.long, at: 601), .s(Self.long, at: 0)]).mismatch == .unknown)
  }

  @Test func aCheckpoint_forgetsWhatOnlyTheSecondaryHasSaid() {
    let other = "X" + Self.long.dropFirst()
    #expect(play([.p("a", at: 0), .s(other, at: 1), .checkpoint, .p(Self.long, at: 1)]) == ([], nil, 1))
  }

  @Test func pieces_areBounded() {
    var limits = ComparatorLimits()
    limits.claimsPerFlow = 2
    var comparator = Comparator(limits: limits)
    comparator.begin(key: Self.key)
    var coder = PieceCoder(key: Self.key)
    var outcomes: [ComparisonOutcome] = []
    for at in 1...3 as ClosedRange<UInt32> {
      guard let said = Self.piece(Self.tcp(at * 5000, Self.long), &coder) else { continue }
      outcomes.append(comparator.secondary(said.piece, acknowledgement: said.acknowledgement))
    }
    #expect(outcomes == [.consistent, .consistent, .overflow(.framesPerFlow)])
    #expect(comparator.heldFrames == 0 && comparator.needsCheckpoint)
  }

  @Test func shortOnes_andThoseThatAreMoreThanAPiece_goAsTheyAre() {
    var coder = PieceCoder(key: Self.key)
    #expect(Self.piece(Self.tcp(1, "short"), &coder) == nil)
    for flags in [TCPSegment.fin | 16, TCPSegment.syn | 16, TCPSegment.rst | 16] {
      #expect(Self.piece(Self.tcp(1, Self.long, flags: flags), &coder) == nil)
    }
    #expect(Self.piece(udp(Array(Self.long.utf8)), &coder) == nil)
    let told: EarlyOutput? = unsafe Self.tcp(1, Self.long).withUnsafeBytes {
      unsafe coder.said($0, header: 0) { _ in true }?.piece
    }
    #expect(told == nil)
  }

  /// One stream, cut, repeated and disordered differently by each side; what is long enough goes by code.
  @Test(arguments: 500..<524 as Range<UInt64>) func anySegmentation_isEqual_andNoByteIsLost(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let count = Int.random(in: 1...200_000, using: &random)
    let stream = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    let initial = UInt32.max - UInt32.random(in: 0...200_000, using: &random)
    let cuts = (0..<2).map { _ in ComparatorRandomTests.cuts(count, largest: 9000, &random) }
    var comparator = Comparator()
    comparator.begin(key: Self.key)
    var coder = PieceCoder(key: Self.key)
    let syn = TCPSegment(sequence: initial, flags: TCPSegment.syn | TCPSegment.ack).bytes
    #expect(comparator.primary(syn.span, token: 0) == .consistent)
    #expect(comparator.secondary(syn.span) == .consistent)
    var (next, equal, byCode): ([Int], [UInt64], Int) = ([0, 0], [], 0)
    var said = [Bool](repeating: false, count: count)
    while next[0] < cuts[0].count || next[1] < cuts[1].count {
      let side = next[0] == cuts[0].count ? 1 : next[1] == cuts[1].count ? 0 : Int.random(in: 0...1, using: &random)
      let cut = cuts[side][next[side]]
      next[side] += 1
      let bytes = ComparatorRandomTests.frame(cut, of: stream, from: initial, version: 4)
      if side == 0 {
        #expect(comparator.primary(bytes.span, token: UInt64(next[0])) == .consistent)
      } else if let piece = Self.piece(bytes, &coder) {
        byCode += 1
        #expect(comparator.secondary(piece.piece, acknowledgement: piece.acknowledgement) == .consistent)
        for index in cut.range { said[index] = true }
      } else {
        #expect(comparator.secondary(bytes.span) == .consistent)
        for index in cut.range { said[index] = true }
      }
      while let token = comparator.nextEqual() {
        equal.append(token)
        if token > 0 { #expect(said[cuts[0][Int(token) - 1].range].allSatisfy { $0 }) }
      }
    }
    #expect(equal == Array(0...UInt64(cuts[0].count)), "seed \(seed)")
    #expect(comparator.heldFrames == 0)
    #expect(count < 20_000 || byCode > 0)
  }
}
