import Replication
import StateCodec
import Testing

@Suite("Sequence mapper") struct SequenceMapperTests {
  /// NOP, NOP, timestamps.
  static func timestamps(_ value: UInt32, _ echo: UInt32) -> [UInt8] { [1, 1, 8, 10] + big32(value) + big32(echo) }
  static let (syn, synAck) = (TCPSegment.syn, TCPSegment.syn | TCPSegment.ack)

  static func outgoing(
    _ mapper: inout SequenceMapper, _ segment: TCPSegment, isPartial: Bool = false
  ) -> (SequenceMapper.Outcome, [UInt8]) {
    var bytes = segment.bytes
    var span = bytes.mutableSpan
    let outcome = mapper.outgoing(&span, isPartial: isPartial)
    return (outcome, bytes)
  }

  static func incoming(
    _ mapper: inout SequenceMapper, _ segment: TCPSegment, isPartial: Bool = false
  ) -> (SequenceMapper.Outcome, [UInt8]) {
    var segment = segment
    segment.isIncoming = true
    var bytes = segment.bytes
    var span = bytes.mutableSpan
    let outcome = mapper.incoming(&span, isPartial: isPartial)
    return (outcome, bytes)
  }

  /// A connection that the guest has accepted: the primary from 100 and 7000 ms, the secondary from `sequence`, `time`.
  static func accepted(version: Int = 4, sequence: UInt32 = 600, time: UInt32 = 7500) -> SequenceMapper {
    var mapper = SequenceMapper()
    let primary = TCPSegment(version: version, sequence: 100, flags: synAck, options: timestamps(7000, 1))
    _ = mapper.primaryOutput(primary.bytes.span, epoch: 1)
    let secondary = TCPSegment(version: version, sequence: sequence, flags: synAck, options: timestamps(time, 1))
    let (outcome, bytes) = outgoing(&mapper, secondary)
    #expect(outcome == (sequence == 100 && time == 7000 ? .unchanged : .mapped))
    #expect(bytes == primary.bytes)
    return mapper
  }

  @Test(arguments: [4, 6]) func output_isThePrimarys(version: Int) {
    var mapper = Self.accepted(version: version)
    let secondary = TCPSegment(
      version: version, sequence: 601, acknowledgement: 42, options: Self.timestamps(7600, 3), payload: [1, 2, 3])
    var primary = secondary
    primary.sequence = 101
    primary.options = Self.timestamps(7100, 3)
    let (outcome, bytes) = Self.outgoing(&mapper, secondary)
    #expect(outcome == .mapped)
    #expect(bytes == primary.bytes)
  }

  @Test(arguments: [4, 6]) func input_isMadeTheSecondarys(version: Int) {
    var mapper = Self.accepted(version: version)
    // SACK behind one NOP lies at an odd offset: the checksum must hold there, too.
    let client = TCPSegment(
      version: version, sequence: 42, acknowledgement: 101,
      options: [1, 5, 18] + big32(110) + big32(120) + big32(130) + big32(140) + [1] + Self.timestamps(9, 7100),
      payload: [5])
    var expected = client
    expected.isIncoming = true
    expected.acknowledgement = 601
    expected.options = [1, 5, 18] + big32(610) + big32(620) + big32(630) + big32(640) + [1]
    expected.options += Self.timestamps(9, 7600)
    let (outcome, bytes) = Self.incoming(&mapper, client)
    #expect(outcome == .mapped)
    #expect(bytes == expected.bytes)
  }

  @Test func numbersWrap() {
    var mapper = Self.accepted(sequence: 50, time: 6000)
    let (_, bytes) = Self.outgoing(&mapper, TCPSegment(sequence: 0xffff_fff0, options: Self.timestamps(5, 1)))
    let mapped = TCPSegment(sequence: 0xffff_fff0 &+ 50, options: Self.timestamps(1005, 1))
    #expect(bytes == mapped.bytes)
  }

  @Test func aPartialChecksum_isLeft() {
    var mapper = Self.accepted()
    let segment = TCPSegment(sequence: 601)
    var expected = segment
    expected.sequence = 101
    let (_, bytes) = Self.outgoing(&mapper, segment, isPartial: true)
    #expect(bytes[38..<42] == expected.bytes[38..<42])
    #expect(bytes[50..<52] == segment.bytes[50..<52])
    let (_, incoming) = Self.incoming(&mapper, segment, isPartial: true)
    var original = segment
    original.isIncoming = true
    #expect(incoming[50..<52] == original.bytes[50..<52])
  }

  @Test func equalNumbers_areLeft() {
    var mapper = Self.accepted(sequence: 100, time: 7000)
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 101)).0 == .unchanged)
    #expect(Self.incoming(&mapper, TCPSegment(acknowledgement: 101)).0 == .unchanged)
  }

  @Test func openedByTheGuest_theSecondaryFirst() {
    var mapper = SequenceMapper()
    let secondary = TCPSegment(sequence: 900, acknowledgement: 0, flags: Self.syn)
    let primary = TCPSegment(sequence: 100, acknowledgement: 0, flags: Self.syn)
    let (early, untouched) = Self.outgoing(&mapper, secondary)
    #expect(early == .awaitsPrimary && untouched == secondary.bytes)
    #expect(mapper.primaryOutput(primary.bytes.span, epoch: 1) == .mapped)
    let (outcome, bytes) = Self.outgoing(&mapper, secondary)
    #expect(outcome == .mapped && bytes == primary.bytes)
    let (_, answer) = Self.incoming(&mapper, TCPSegment(acknowledgement: 101, flags: Self.synAck))
    var expected = TCPSegment(acknowledgement: 901, flags: Self.synAck)
    expected.isIncoming = true
    #expect(answer == expected.bytes)
  }

  // MARK: Frames that anybody can have sent

  /// The primary's numbers are the primary's to say: an acknowledgement names any.
  @Test func forgedAcknowledgement_teachesNothing() {
    var mapper = SequenceMapper()
    let secondary = TCPSegment(sequence: 600, flags: Self.synAck)
    #expect(Self.outgoing(&mapper, secondary).0 == .awaitsPrimary)
    #expect(Self.incoming(&mapper, TCPSegment(acknowledgement: 9_999_999)).0 == .unchanged)
    #expect(mapper.primaryOutput(TCPSegment(sequence: 100, flags: Self.synAck).bytes.span, epoch: 1) == .mapped)
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 601)).1 == TCPSegment(sequence: 101).bytes)
  }

  /// Resets, FINs, SYNs and acknowledgements that the guest does not obey leave the mapping as it is.
  @Test(arguments: [false, true]) func forgedFrames_leaveTheMapping(isAlone: Bool) {
    var mapper = Self.accepted()
    _ = Self.outgoing(&mapper, TCPSegment(sequence: 601, acknowledgement: 43, payload: [1]))
    if isAlone { mapper.failOver() }
    for flags in [
      TCPSegment.rst, TCPSegment.rst | TCPSegment.ack, Self.syn, Self.synAck, TCPSegment.fin | TCPSegment.ack,
    ] {
      for sequence in [0, 42, 44, 1000, 0xffff_ffff] as [UInt32] {
        for acknowledgement in [0, 101, 5000, 0xffff_ffff] as [UInt32] {
          _ = Self.incoming(
            &mapper, TCPSegment(sequence: sequence, acknowledgement: acknowledgement, flags: flags))
        }
      }
    }
    // A guest answers what does not fit by a reset of the forger's numbers.
    _ = Self.outgoing(&mapper, TCPSegment(sequence: 77_777, flags: TCPSegment.rst))
    let (outcome, bytes) = Self.outgoing(&mapper, TCPSegment(sequence: 602, payload: [2]))
    #expect(outcome == .mapped && bytes == TCPSegment(sequence: 102, payload: [2]).bytes)
    var expected = TCPSegment(acknowledgement: 603)
    expected.isIncoming = true
    #expect(Self.incoming(&mapper, TCPSegment(acknowledgement: 103)).1 == expected.bytes)
  }

  /// What the guest obeys ends it: exactly the next byte that it expects.
  @Test func exactReset_endsTheMapping() {
    var mapper = Self.accepted()
    _ = Self.outgoing(&mapper, TCPSegment(sequence: 601, acknowledgement: 43, payload: [1]))
    _ = Self.incoming(&mapper, TCPSegment(sequence: 43, flags: TCPSegment.rst))
    #expect(mapper.count == 0)
  }

  @Test func aLoadedCheckpoint_endsTheMapping() throws {
    var mapper = Self.accepted()
    try mapper.checkpointLoaded(epoch: 1)
    #expect(mapper.count == 0)
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 601)).0 == .unchanged)
  }

  @Test func whatThePrimaryBeganSince_isKept() throws {
    var mapper = SequenceMapper()
    _ = mapper.primaryOutput(TCPSegment(sequence: 100, flags: Self.synAck).bytes.span, epoch: 2)
    try mapper.checkpointLoaded(epoch: 1)
    let (outcome, bytes) = Self.outgoing(&mapper, TCPSegment(sequence: 600, flags: Self.synAck))
    #expect(outcome == .mapped && bytes == TCPSegment(sequence: 100, flags: Self.synAck).bytes)
  }

  @Test func failover_keepsWhatIsMapped_andMapsNothingNew() {
    var mapper = Self.accepted()
    mapper.failOver()
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 601)).0 == .mapped)
    let fresh = TCPSegment(peerPort: 2, sequence: 1, flags: Self.synAck)
    #expect(Self.outgoing(&mapper, fresh).0 == .unchanged)
    // The same ports again: another connection.
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 9999, flags: Self.synAck)).0 == .unchanged)
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 10000)).0 == .unchanged)
    #expect(mapper.count == 0)
  }

  /// A survivor's own secondary speaks to the survivor's clients in the numbers that they know.
  @Test func aSurvivorsMappings_goToItsSecondary_andThroughAnotherFailover() throws {
    var survivor = Self.accepted()
    survivor.failOver()
    var next = SequenceMapper()
    try next.checkpointLoaded(epoch: 1, mappings: survivor.encoded)
    #expect(next.count == 1)
    #expect(Self.outgoing(&next, TCPSegment(sequence: 601)).0 == .mapped)
    try next.checkpointLoaded(epoch: 2, mappings: survivor.encoded)
    next.failOver()
    let (outcome, bytes) = Self.outgoing(&next, TCPSegment(sequence: 650))
    #expect(outcome == .mapped && bytes == TCPSegment(sequence: 150).bytes)
    try next.checkpointLoaded(epoch: 3, mappings: SequenceMapper().encoded)
    #expect(next.count == 0)
  }

  @Test func brokenMappings_areRefused() {
    var survivor = Self.accepted()
    survivor.failOver()
    var mapper = SequenceMapper()
    for count in 1..<survivor.encoded.count {
      #expect(throws: StateError.self) {
        try mapper.checkpointLoaded(epoch: 1, mappings: Array(survivor.encoded[..<count]))
      }
    }
  }

  @Test func reset_endsTheMapping_andIsMappedItself() {
    var mapper = Self.accepted()
    let (outcome, bytes) = Self.outgoing(&mapper, TCPSegment(sequence: 601, flags: TCPSegment.rst))
    #expect(outcome == .mapped && bytes == TCPSegment(sequence: 101, flags: TCPSegment.rst).bytes)
    #expect(mapper.count == 0)
  }

  @Test func capacity_isReported_andConnectionsThatAreOverGiveWay() {
    var mapper = SequenceMapper(capacity: 1)
    _ = mapper.primaryOutput(TCPSegment(sequence: 100, flags: Self.synAck).bytes.span, epoch: 1)
    #expect(Self.outgoing(&mapper, TCPSegment(sequence: 600, flags: Self.synAck)).0 == .mapped)
    let other = TCPSegment(peerPort: 2, flags: Self.synAck).bytes
    #expect(mapper.primaryOutput(other.span, epoch: 1) == .overflow)
    let fin = TCPSegment.fin | TCPSegment.ack
    _ = Self.outgoing(&mapper, TCPSegment(sequence: 601, flags: fin))
    _ = Self.incoming(&mapper, TCPSegment(sequence: 42, acknowledgement: 102, flags: fin))
    #expect(mapper.primaryOutput(other.span, epoch: 1) == .overflow, "the guest has not taken in the peer's FIN yet")
    _ = Self.outgoing(&mapper, TCPSegment(sequence: 602, acknowledgement: 43))
    #expect(mapper.primaryOutput(other.span, epoch: 1) == .unchanged)
  }

  /// Any numbers, any options: the checksum stays right, and what is mapped out and back is what it was.
  @Test(arguments: 0..<50 as Range<UInt64>) func checksums_areRight(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    let (sequence, time) = (
      UInt32.random(in: 0...UInt32.max, using: &random), UInt32.random(in: 1...9999, using: &random)
    )
    var mapper = Self.accepted(version: seed & 1 == 0 ? 4 : 6, sequence: sequence, time: time)
    for _ in 0..<40 {
      var segment = TCPSegment(version: seed & 1 == 0 ? 4 : 6)
      segment.sequence = .random(in: 0...UInt32.max, using: &random)
      segment.acknowledgement = .random(in: 0...UInt32.max, using: &random)
      let padding = [UInt8](repeating: 1, count: Int.random(in: 0...2, using: &random))
      segment.options = padding + [8, 10] + big32(.random(in: 0...UInt32.max, using: &random)) + big32(7)
      segment.options += [5, 10] + big32(.random(in: 0...UInt32.max, using: &random)) + big32(9)
      while segment.options.count % 4 != 0 { segment.options.append(0) }
      segment.payload = (0..<Int.random(in: 0...50, using: &random)).map { _ in .random(in: 0...255, using: &random) }
      let (_, out) = Self.outgoing(&mapper, segment)
      #expect(hasRightChecksum(out), "seed \(seed)")
      let (_, back) = Self.incoming(&mapper, segment)
      #expect(hasRightChecksum(back), "seed \(seed)")
    }
  }
}
