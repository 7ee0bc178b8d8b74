import Replication
import Testing

@Suite("Frame") struct FrameTests {
  struct Row: Sendable, CustomTestStringConvertible {
    let why: String
    let bytes: [UInt8]
    let kind: Frame.Kind
    var payload: [UInt8]? = nil
    var testDescription: String { why }
  }

  static let segment = TCPSegment(payload: [1, 2, 3])
  static let six = TCPSegment(version: 6, payload: [4, 5])

  static func changed(_ bytes: [UInt8], _ changes: [Int: UInt8]) -> [UInt8] {
    var bytes = bytes
    for (offset, value) in changes { bytes[offset] = value }
    return bytes
  }

  static func extended(_ first: UInt8, _ bytes: [UInt8]) -> [UInt8] {
    var segment = six
    segment.extensions = (first, bytes)
    return segment.bytes
  }

  static let rows: [Row] = [
    Row(why: "TCP", bytes: segment.bytes, kind: .tcp, payload: [1, 2, 3]),
    Row(why: "padding is no payload", bytes: segment.bytes + [0, 0, 0], kind: .tcp, payload: [1, 2, 3]),
    Row(why: "TCP options", bytes: TCPSegment(options: [1, 1, 1, 0], payload: [9]).bytes, kind: .tcp, payload: [9]),
    Row(
      why: "VLAN", bytes: segment.bytes[..<12] + [0x81, 0, 0, 5] + segment.bytes[12...], kind: .tcp,
      payload: [1, 2, 3]),
    Row(why: "IPv4 header too short", bytes: changed(segment.bytes, [14: 0x44]), kind: .whole),
    Row(why: "IPv4 header longer than the packet", bytes: changed(segment.bytes, [14: 0x4f]), kind: .whole),
    Row(why: "IPv4 length past the frame", bytes: changed(segment.bytes, [17: 0xff]), kind: .whole),
    Row(why: "IPv4 says version 6", bytes: changed(segment.bytes, [14: 0x65]), kind: .whole),
    Row(why: "first fragment", bytes: changed(segment.bytes, [20: 0x20]), kind: .whole),
    Row(why: "later fragment", bytes: changed(segment.bytes, [21: 1]), kind: .whole),
    Row(why: "TCP header too short", bytes: changed(segment.bytes, [46: 0x40]), kind: .whole),
    Row(why: "TCP header past the packet", bytes: changed(segment.bytes, [46: 0xf0]), kind: .whole),
    Row(why: "TCP over IPv6", bytes: six.bytes, kind: .tcp, payload: [4, 5]),
    Row(why: "hop-by-hop", bytes: extended(0, [6, 0, 1, 4, 0, 0, 0, 0]), kind: .tcp, payload: [4, 5]),
    Row(
      why: "destination, then routing",
      bytes: extended(60, [43, 0, 1, 4, 0, 0, 0, 0] + [6, 1] + [UInt8](repeating: 0, count: 14)), kind: .tcp,
      payload: [4, 5]),
    Row(why: "extension past the packet", bytes: extended(0, [6, 200, 1, 4, 0, 0, 0, 0]), kind: .whole),
    Row(why: "IPv6 fragment", bytes: extended(44, [6, 0, 0, 1, 0, 0, 0, 1]), kind: .whole),
    Row(why: "jumbogram", bytes: changed(six.bytes, [18: 0, 19: 0]), kind: .whole),
    Row(why: "UDP", bytes: udp([7, 8]), kind: .datagram, payload: [7, 8]),
    Row(why: "UDP length below its header", bytes: changed(udp([7, 8]), [39: 7]), kind: .whole),
    Row(why: "UDP length past the packet", bytes: changed(udp([7, 8]), [39: 11]), kind: .whole),
    Row(why: "UDP over IPv6", bytes: udp([7, 8], version: 6), kind: .datagram, payload: [7, 8]),
    Row(why: "ICMP", bytes: echoReply([5]), kind: .datagram, payload: [0, 7, 0, 1, 5]),
    Row(why: "ICMPv6", bytes: echoReply([5], version: 6), kind: .datagram, payload: [0, 7, 0, 1, 5]),
    Row(why: "another protocol", bytes: changed(udp([7]), [23: 47]), kind: .datagram),
    Row(why: "ARP", bytes: arp(1), kind: .whole),
    Row(why: "empty", bytes: [], kind: .whole, payload: []),
  ]

  @Test(arguments: rows) func parse(row: Row) {
    let frame = Frame(row.bytes.span)
    #expect(frame.kind == row.kind)
    if let payload = row.payload { #expect(Array(row.bytes[frame.payload]) == payload) }
    if row.kind == .whole { #expect(frame.payload == 0..<row.bytes.count) }
  }

  @Test func fieldsOfTCP() {
    let bytes = TCPSegment(sequence: 0xfedc_ba98, acknowledgement: 0x0123_4567, flags: 0xff).bytes
    let frame = Frame(bytes.span)
    #expect(frame.sequence == 0xfedc_ba98 && frame.acknowledgement == 0x0123_4567)
    #expect(frame.flags == [.fin, .syn, .rst, .ack])
    #expect(frame.key.sourcePort == 80 && frame.key.destinationPort == 40000)
    let back = Frame(TCPSegment(isIncoming: true).bytes.span)
    #expect(back.key.reversed == frame.key && back.key != frame.key)
  }

  /// Cut off at every length: what is left is read within its bounds.
  @Test func truncated_neverTraps() {
    for row in Self.rows {
      for count in 0...row.bytes.count {
        let bytes = Array(row.bytes[..<count])
        let frame = Frame(bytes.span)
        #expect(frame.payload.upperBound <= count)
      }
    }
  }
}
