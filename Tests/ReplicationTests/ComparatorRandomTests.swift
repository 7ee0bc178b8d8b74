import Replication
import Testing

/// One stream of bytes, cut, repeated and disordered differently by each side.
@Suite("Comparator, random") struct ComparatorRandomTests {
  struct Cut {
    var range: Range<Int>
    var isFin = false
  }

  /// Covers `count` bytes with segments of random sizes, some again, some before their turn; FIN at the end.
  static func cuts(_ count: Int, largest: Int, _ random: inout SeededGenerator) -> [Cut] {
    var cuts: [Cut] = []
    var at = 0
    while at < count {
      let size = min(count - at, Int.random(in: 1...largest, using: &random))
      cuts.append(Cut(range: at..<at + size, isFin: at + size == count))
      if Int.random(in: 0..<8, using: &random) == 0 {
        let from = Int.random(in: max(0, at - 3000)...at, using: &random)
        cuts.append(Cut(range: from..<min(at + size, from + largest)))
      }
      at += size
    }
    for index in cuts.indices.dropLast() where Int.random(in: 0..<6, using: &random) == 0 {
      cuts.swapAt(index, index + 1)
    }
    return cuts
  }

  static func frame(_ cut: Cut, of stream: [UInt8], from initial: UInt32, version: Int) -> [UInt8] {
    TCPSegment(
      version: version, sequence: initial &+ 1 &+ UInt32(cut.range.lowerBound),
      flags: TCPSegment.ack | (cut.isFin ? TCPSegment.fin : 0), payload: Array(stream[cut.range])
    ).bytes
  }

  @Test(arguments: 0..<24 as Range<UInt64>) func anySegmentation_isEqual_andNoByteIsLost(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let count = Int.random(in: 1...60_000, using: &random)
    let stream = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    // Near 2^32, so that most of them wrap.
    let initial = UInt32.max - UInt32.random(in: 0...60_000, using: &random)
    let version = seed & 1 == 0 ? 4 : 6
    let syn = TCPSegment(version: version, sequence: initial, flags: TCPSegment.syn | TCPSegment.ack).bytes
    let largest = [1448, 9000, 32_000]
    let cuts = (0..<2).map { _ in
      Self.cuts(count, largest: largest.randomElement(using: &random) ?? 1, &random)
    }

    var comparator = Comparator()
    #expect(comparator.primary(syn.span, token: 0) == .consistent)
    #expect(comparator.secondary(syn.span) == .consistent)
    var next = [0, 0]
    var equal: [UInt64] = []
    var said = [Bool](repeating: false, count: count)
    while next[0] < cuts[0].count || next[1] < cuts[1].count {
      let side = next[0] == cuts[0].count ? 1 : next[1] == cuts[1].count ? 0 : Int.random(in: 0...1, using: &random)
      let cut = cuts[side][next[side]]
      next[side] += 1
      let bytes = Self.frame(cut, of: stream, from: initial, version: version)
      if side == 0 {
        #expect(comparator.primary(bytes.span, token: UInt64(next[0])) == .consistent)
      } else {
        #expect(comparator.secondary(bytes.span) == .consistent)
        for index in cut.range { said[index] = true }
      }
      while let token = comparator.nextEqual() {
        equal.append(token)
        // Never before the secondary has said all of it.
        if token > 0 { #expect(said[cuts[0][Int(token) - 1].range].allSatisfy { $0 }) }
      }
    }
    #expect(equal == Array(0...UInt64(cuts[0].count)), "seed \(seed)")
    #expect(comparator.heldFrames == 0)
  }

  /// As above, with stretches that the secondary compares and need not show.
  @Test(arguments: 300..<324 as Range<UInt64>) func agreedStretches_leaveTheRestAsItIs(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let count = Int.random(in: 1...60_000, using: &random)
    let stream = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    let initial = UInt32.max - UInt32.random(in: 0...60_000, using: &random)
    let cuts = (0..<2).map { _ in Self.cuts(count, largest: 1448, &random) }
    var comparator = Comparator()
    let syn = TCPSegment(sequence: initial, flags: TCPSegment.syn | TCPSegment.ack).bytes
    #expect(comparator.primary(syn.span, token: 0) == .consistent)
    #expect(comparator.secondary(syn.span) == .consistent)
    var next = [0, 0]
    var (agreed, said) = ([Bool](repeating: false, count: count), [Bool](repeating: false, count: count))
    var (waiting, equal): ([UInt64], [UInt64]) = ([0], [])
    while next[0] < cuts[0].count || next[1] < cuts[1].count {
      let side = next[0] == cuts[0].count ? 1 : next[1] == cuts[1].count ? 0 : Int.random(in: 0...1, using: &random)
      let cut = cuts[side][next[side]]
      next[side] += 1
      let bytes = Self.frame(cut, of: stream, from: initial, version: 4)
      if side == 0, !cut.isFin, Bool.random(using: &random) {
        #expect(comparator.agree(bytes.span) == .consistent)
        for index in cut.range { agreed[index] = true }
      } else if side == 0 {
        #expect(comparator.primary(bytes.span, token: UInt64(next[0])) == .consistent)
        waiting.append(UInt64(next[0]))
      } else if cut.isFin || Bool.random(using: &random) || !cut.range.allSatisfy({ agreed[$0] }) {
        #expect(comparator.secondary(bytes.span) == .consistent)
        for index in cut.range { said[index] = true }
      }
      while let token = comparator.nextEqual() {
        equal.append(token)
        if token > 0 { #expect(cuts[0][Int(token) - 1].range.allSatisfy { said[$0] || agreed[$0] }) }
      }
    }
    #expect(equal == waiting, "seed \(seed)")
    #expect(comparator.heldFrames == 0)
  }

  @Test(arguments: 100..<124 as Range<UInt64>) func aFlippedByte_isFoundAtItsPlace(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let count = Int.random(in: 1...20_000, using: &random)
    let stream = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
    let place = Int.random(in: 0..<count, using: &random)
    var other = stream
    other[place] ^= 1 << UInt8.random(in: 0...7, using: &random)
    let initial = UInt32.random(in: 0...UInt32.max, using: &random)
    let syn = TCPSegment(sequence: initial, flags: TCPSegment.syn | TCPSegment.ack).bytes
    var comparator = Comparator()
    #expect(comparator.primary(syn.span, token: 0) == .consistent)
    #expect(comparator.secondary(syn.span) == .consistent)
    var found: [ComparisonOutcome.Mismatch] = []
    let flipped = Int.random(in: 0...1, using: &random)
    let cuts = (0..<2).map { _ in Self.cuts(count, largest: 1448, &random) }
    for side in 0..<2 {
      for cut in cuts[side] {
        let bytes = Self.frame(cut, of: side == flipped ? other : stream, from: initial, version: 4)
        let outcome = side == 0 ? comparator.primary(bytes.span, token: 1) : comparator.secondary(bytes.span)
        if case .mismatch(let mismatch) = outcome { found.append(mismatch) }
      }
    }
    #expect(found.count == 1 && found.first?.reason == .payload, "seed \(seed)")
    #expect(found.first?.place == initial &+ 1 &+ UInt32(place), "seed \(seed)")
  }

  /// Whatever the guest sends, nothing traps and memory stays bounded.
  @Test(arguments: 200..<204 as Range<UInt64>) func hostileFrames_neverTrap_andStayBounded(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    var limits = ComparatorLimits()
    limits.flows = 64
    limits.bytes = 1 << 20
    limits.bytesPerFlow = 1 << 17
    limits.frames = 256
    limits.framesPerFlow = 64
    var comparator = Comparator(limits: limits)
    var mapper = SequenceMapper(capacity: 64)
    var epoch: UInt64 = 1
    for round in 0..<20_000 {
      var bytes = Self.hostile(&random)
      let choice = Int.random(in: 0..<100, using: &random)
      switch choice {
      case 0..<4: _ = comparator.agree(bytes.span)
      case 4..<44: _ = comparator.primary(bytes.span, token: UInt64(round))
      case 44..<88: _ = comparator.secondary(bytes.span)
      case 88..<97: comparator.input(bytes.span)
      case 97: comparator.checkpoint()
      case 98:
        try mapper.checkpointLoaded(epoch: epoch)
        epoch += 1
      default: if round > 15_000 { mapper.failOver() }
      }
      _ = mapper.primaryOutput(bytes.span, epoch: epoch)
      let isPartial = Bool.random(using: &random)
      var span = bytes.mutableSpan
      _ = choice & 1 == 0 ? mapper.outgoing(&span, isPartial: isPartial) : mapper.incoming(&span, isPartial: isPartial)
      while comparator.nextEqual() != nil {}
      let isBounded =
        comparator.heldBytes <= limits.bytes && comparator.heldFrames <= limits.frames
        && comparator.heldFlows <= 2 * limits.flows && mapper.count <= mapper.capacity
      guard isBounded else {
        Issue.record("seed \(seed), round \(round): more is held than the limits allow")
        return
      }
    }
    #expect(comparator.counters.mismatches > 0 && comparator.counters.overflows > 0)
  }

  /// Noise, or a frame of few connections with odd numbers and some bytes changed.
  static func hostile(_ random: inout SeededGenerator) -> [UInt8] {
    if Int.random(in: 0..<10, using: &random) == 0 {
      return (0..<Int.random(in: 0...200, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
    }
    let edges: [UInt32] = [0, 1, 1000, 3000, 70_000, 0x7fff_ffff, 0x8000_0000, 0x8000_03e8, UInt32.max]
    let near = UInt32.random(in: 0...4000, using: &random)
    var segment = TCPSegment(
      version: Bool.random(using: &random) ? 4 : 6, peerPort: UInt16.random(in: 0..<60, using: &random),
      isIncoming: Int.random(in: 0..<4, using: &random) == 0,
      sequence: Bool.random(using: &random) ? near : edges.randomElement(using: &random) ?? 0,
      acknowledgement: edges.randomElement(using: &random) ?? 0,
      flags: Int.random(in: 0..<3, using: &random) == 0 ? UInt8.random(in: 0...255, using: &random) : TCPSegment.ack)
    segment.options = (0..<4 * Int.random(in: 0...10, using: &random)).map { _ in
      UInt8.random(in: 0...12, using: &random)
    }
    let largest = Int.random(in: 0..<50, using: &random) == 0 ? 60_000 : 1500
    segment.payload = [UInt8](
      repeating: UInt8.random(in: 0...1, using: &random) / 4, count: Int.random(in: 0...largest, using: &random))
    var bytes = Int.random(in: 0..<5, using: &random) == 0 ? udp(segment.payload) : segment.bytes
    for _ in 0..<(Int.random(in: 0..<3, using: &random) == 0 ? 3 : 0) {
      bytes[Int.random(in: 0..<min(bytes.count, 100), using: &random)] = UInt8.random(in: 0...255, using: &random)
    }
    if Int.random(in: 0..<10, using: &random) == 0 {
      bytes.removeLast(Int.random(in: 0...bytes.count, using: &random))
    }
    return bytes
  }
}
