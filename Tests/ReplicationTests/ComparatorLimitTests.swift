import Replication
import Testing

@Suite("Comparator limits") struct ComparatorLimitTests {
  static func segment(_ port: UInt16, _ sequence: UInt32, _ count: Int) -> [UInt8] {
    TCPSegment(peerPort: port, sequence: sequence, payload: [UInt8](repeating: 7, count: count)).bytes
  }

  @Test func bytesOfOneFlow() {
    var limits = ComparatorLimits()
    limits.bytesPerFlow = 4096
    var comparator = Comparator(limits: limits)
    #expect(comparator.primary(Self.segment(1, 0, 4096).span, token: 1) == .consistent)
    #expect(comparator.primary(Self.segment(1, 4096, 1).span, token: 2) == .overflow(.bytesPerFlow))
    #expect(comparator.needsCheckpoint && comparator.heldFrames == 0)
    comparator.checkpoint()
    #expect(comparator.needsCheckpoint == false)
    #expect(comparator.primary(Self.segment(1, 4097, 4096).span, token: 3) == .consistent)
  }

  @Test func framesOfOneFlow_andOfAll() {
    var limits = ComparatorLimits()
    limits.framesPerFlow = 2
    limits.frames = 3
    var comparator = Comparator(limits: limits)
    #expect(comparator.primary(Self.segment(1, 0, 0).span, token: 1) == .consistent)
    #expect(comparator.primary(Self.segment(1, 0, 0).span, token: 2) == .consistent)
    #expect(comparator.primary(udp([1], port: 1).span, token: 3) == .consistent)
    #expect(comparator.primary(udp([1], port: 2).span, token: 4) == .overflow(.frames))
    #expect(comparator.primary(Self.segment(1, 0, 0).span, token: 5) == .overflow(.framesPerFlow))
    #expect(comparator.heldFrames == 1)
  }

  @Test func holes() {
    var limits = ComparatorLimits()
    limits.holesPerFlow = 2
    var comparator = Comparator(limits: limits)
    for index in 0...2 as ClosedRange<UInt32> {
      #expect(comparator.secondary(Self.segment(1, index * 10, 1).span) == .consistent)
    }
    #expect(comparator.secondary(Self.segment(1, 30, 1).span) == .overflow(.holesPerFlow))
  }

  @Test func wholeFrames() {
    var limits = ComparatorLimits()
    limits.wholeFrames = 2
    var comparator = Comparator(limits: limits)
    #expect(comparator.primary(arp(1).span, token: 1) == .consistent)
    #expect(comparator.secondary(arp(2).span) == .consistent)
    #expect(comparator.primary(arp(3).span, token: 3) == .overflow(.wholeFrames))
    #expect(comparator.secondary(arp(1).span) == .consistent)
    #expect(comparator.nextEqual() == 1)
    #expect(comparator.primary(arp(3).span, token: 4) == .consistent)
  }

  @Test func flows_idleOnesGiveWay_busyOnesDoNot() {
    var limits = ComparatorLimits()
    limits.flows = 2
    var comparator = Comparator(limits: limits)
    for port in 1...2 as ClosedRange<UInt16> {
      #expect(comparator.primary(Self.segment(port, 0, 4).span, token: 1) == .consistent)
    }
    #expect(comparator.primary(Self.segment(3, 0, 4).span, token: 3) == .overflow(.flows))
    #expect(comparator.secondary(Self.segment(2, 0, 4).span) == .consistent)
    #expect(comparator.primary(Self.segment(3, 0, 4).span, token: 3) == .consistent)
    #expect(comparator.heldFlows == 2)
    comparator.checkpoint()
    #expect(comparator.primary(Self.segment(4, 0, 4).span, token: 4) == .consistent)
  }

  @Test func memory_ofIdleFlowsGoesFirst() {
    var limits = ComparatorLimits()
    limits.bytes = 8192
    var comparator = Comparator(limits: limits)
    for port in 1...100 as ClosedRange<UInt16> {
      let bytes = Self.segment(port, 0, 2000)
      #expect(comparator.primary(bytes.span, token: UInt64(port)) == .consistent)
      #expect(comparator.secondary(bytes.span) == .consistent)
      #expect(comparator.heldBytes <= limits.bytes)
    }
    for port in 101...104 as ClosedRange<UInt16> {
      #expect(comparator.primary(Self.segment(port, 0, 2000).span, token: 1) == .consistent)
    }
    #expect(comparator.primary(Self.segment(105, 0, 2000).span, token: 1) == .overflow(.bytes))
    #expect(comparator.heldBytes <= limits.bytes)
  }

  /// Megabytes through one connection: memory stays what its history takes.
  @Test func aLongStream_staysSmall() {
    var limits = ComparatorLimits()
    limits.historyPerFlow = 16384
    var comparator = Comparator(limits: limits)
    var sequence: UInt32 = 0xffff_0000
    for token in 0..<2000 as Range<UInt64> {
      let bytes = Self.segment(1, sequence, 1448)
      #expect(comparator.primary(bytes.span, token: token) == .consistent)
      #expect(comparator.secondary(bytes.span) == .consistent)
      #expect(comparator.nextEqual() == token)
      sequence &+= 1448
    }
    #expect(comparator.heldBytes == 16384 && comparator.heldFrames == 0)
  }
}
