import Replication
import Testing

/// What the two guests send in turn, and the primary's frames that are equal by the end. Tokens count from 0.
@Suite("Comparator") struct ComparatorTests {
  typealias Reason = ComparisonOutcome.Mismatch.Reason

  struct Row: Sendable, CustomTestStringConvertible {
    let why: String
    let steps: [Step]
    let equal: [UInt64]
    var mismatch: Reason? = nil
    var testDescription: String { why }
  }

  enum Step: Sendable {
    case p([UInt8])
    case s([UInt8])
    /// A frame of the primary's that the secondary compares.
    case agreed([UInt8])
    case checkpoint
    /// Another secondary.
    case restart
  }

  static func tcp(
    _ sequence: UInt32, _ text: String = "", _ flags: UInt8 = TCPSegment.ack, ack: UInt32 = 5000, window: UInt16 = 512,
    options: [UInt8] = [], version: Int = 4, port: UInt16 = 40000
  ) -> [UInt8] {
    TCPSegment(
      version: version, peerPort: port, sequence: sequence, acknowledgement: ack, flags: flags, window: window,
      ipID: UInt16.random(in: 0...UInt16.max), options: options, payload: Array(text.utf8)
    ).bytes
  }

  static let (fin, syn, rst) = (TCPSegment.fin | 16, TCPSegment.syn | 16, TCPSegment.rst | 16)

  static let rows: [Row] = [
    Row(why: "alone it waits", steps: [.p(tcp(1, "ab"))], equal: []),
    Row(why: "the same bytes", steps: [.p(tcp(1, "ab")), .s(tcp(1, "ab"))], equal: [0]),
    Row(why: "the secondary first", steps: [.s(tcp(1, "ab")), .p(tcp(1, "ab"))], equal: [0]),
    Row(why: "IPv6", steps: [.p(tcp(1, "ab", version: 6)), .s(tcp(1, "ab", version: 6))], equal: [0]),
    Row(why: "other bytes", steps: [.p(tcp(1, "ab")), .s(tcp(1, "aX"))], equal: [], mismatch: .payload),
    Row(why: "another connection", steps: [.p(tcp(1, "ab")), .s(tcp(1, "ab", port: 1))], equal: []),
    Row(
      why: "window, options, PSH and IP id do not count",
      steps: [
        .p(tcp(1, "ab", TCPSegment.ack | TCPSegment.psh, window: 1)),
        .s(tcp(1, "ab", window: 9, options: [1, 1, 1, 1])),
      ], equal: [0]),
    Row(
      why: "one segment against three",
      steps: [.p(tcp(1, "abcdef")), .s(tcp(1, "ab")), .s(tcp(3, "cd")), .s(tcp(5, "ef"))], equal: [0]),
    Row(why: "part of a segment is not enough", steps: [.p(tcp(1, "abcd")), .s(tcp(1, "abc"))], equal: []),
    Row(
      why: "three segments against one", steps: [.p(tcp(1, "ab")), .p(tcp(3, "cd")), .s(tcp(1, "abcd"))], equal: [0, 1]),
    Row(
      why: "a retransmission is equal at once",
      steps: [.p(tcp(1, "ab")), .s(tcp(1, "ab")), .p(tcp(1, "ab"))], equal: [0, 1]),
    Row(
      why: "a retransmission with other bytes",
      steps: [.p(tcp(1, "ab")), .s(tcp(1, "ab")), .p(tcp(1, "aX"))], equal: [0], mismatch: .payload),
    Row(
      why: "a retransmission of what is not compared yet, with other bytes",
      steps: [.p(tcp(1, "ab")), .p(tcp(1, "Xb"))], equal: [], mismatch: .payload),
    Row(
      why: "a retransmission from before the checkpoint is checked, too",
      steps: [.p(tcp(1, "ab")), .checkpoint, .p(tcp(1, "aX"))], equal: [], mismatch: .payload),
    Row(
      why: "a retransmission from before a checkpoint",
      steps: [.p(tcp(1, "ab")), .checkpoint, .p(tcp(1, "ab"))], equal: [1]),
    Row(
      why: "out of order at the secondary",
      steps: [.p(tcp(1, "abcd")), .s(tcp(1, "a")), .s(tcp(3, "cd")), .s(tcp(2, "b"))], equal: [0]),
    Row(
      why: "a hole at the secondary", steps: [.p(tcp(1, "abcd")), .s(tcp(1, "a")), .s(tcp(3, "cd"))], equal: []),
    Row(
      why: "out of order at the primary: none overtakes",
      steps: [.p(tcp(1, "a")), .p(tcp(3, "c")), .p(tcp(2, "b")), .s(tcp(1, "a")), .s(tcp(2, "bc"))], equal: [0, 1, 2]),
    Row(
      why: "what lies before the first frame seen is not known to be equal",
      steps: [.p(tcp(5, "e")), .s(tcp(5, "e")), .p(tcp(1, "abcd"))], equal: [0]),
    Row(why: "the ACK is not reached", steps: [.p(tcp(1, "ab", ack: 11)), .s(tcp(1, "ab", ack: 10))], equal: []),
    Row(
      why: "the ACK is reached later",
      steps: [.p(tcp(1, "ab", ack: 11)), .s(tcp(1, "ab", ack: 10)), .s(tcp(3, ack: 12))], equal: [0]),
    Row(why: "pure ACK, the secondary silent", steps: [.p(tcp(1, ack: 10))], equal: []),
    Row(why: "pure ACK reached", steps: [.p(tcp(1, ack: 10)), .s(tcp(1, ack: 10))], equal: [0]),
    Row(why: "pure ACK passed", steps: [.s(tcp(1, ack: 12)), .p(tcp(1, ack: 10))], equal: [0]),
    Row(
      why: "an older ACK does not lower it", steps: [.s(tcp(1, ack: 12)), .s(tcp(1, ack: 9)), .p(tcp(1, ack: 12))],
      equal: [0]),
    Row(
      why: "ACKs wrap: reached", steps: [.p(tcp(1, ack: 0xffff_fff0)), .s(tcp(1, ack: 5))], equal: [0]),
    Row(why: "ACKs wrap: not reached", steps: [.p(tcp(1, ack: 5)), .s(tcp(1, ack: 0xffff_fff0))], equal: []),
    Row(
      why: "sequence numbers wrap",
      steps: [.p(tcp(0xffff_fffe, "abcd")), .s(tcp(0xffff_fffe, "abc")), .s(tcp(1, "d"))], equal: [0]),
    Row(why: "FIN on both", steps: [.p(tcp(1, "ab", fin)), .s(tcp(1, "ab")), .s(tcp(3, "", fin))], equal: [0]),
    Row(why: "FIN not yet on the secondary", steps: [.p(tcp(1, "ab", fin)), .s(tcp(1, "ab"))], equal: []),
    Row(
      why: "data where the other has FIN", steps: [.p(tcp(1, "ab", fin)), .s(tcp(1, "abc"))], equal: [],
      mismatch: .flags),
    Row(
      why: "FIN where the other has data", steps: [.p(tcp(1, "abc")), .s(tcp(1, "ab", fin))], equal: [],
      mismatch: .flags),
    Row(
      why: "FIN again is a retransmission", steps: [.p(tcp(1, "", fin)), .s(tcp(1, "", fin)), .p(tcp(1, "", fin))],
      equal: [0, 1]),
    Row(why: "RST on both", steps: [.p(tcp(1, "", rst)), .s(tcp(1, "", rst))], equal: [0]),
    Row(why: "RST not on the secondary", steps: [.p(tcp(1, "", rst)), .s(tcp(1))], equal: []),
    Row(why: "RST elsewhere", steps: [.p(tcp(1, "", rst)), .s(tcp(3, "", rst))], equal: [], mismatch: .flags),
    Row(
      why: "RST without ACK", steps: [.p(tcp(1, "", TCPSegment.rst, ack: 0)), .s(tcp(1, "", TCPSegment.rst, ack: 0))],
      equal: [0]),
    Row(
      why: "data where the other has RST", steps: [.p(tcp(1, "", rst)), .s(tcp(1, "a"))], equal: [], mismatch: .flags),
    Row(
      why: "RST before a checkpoint, and another elsewhere",
      steps: [.p(tcp(1, "", rst)), .checkpoint, .p(tcp(9, "", rst, ack: 7)), .s(tcp(9, "", rst, ack: 7))], equal: [1]),
    Row(why: "SYN-ACK on both", steps: [.p(tcp(7, "", syn)), .s(tcp(7, "", syn))], equal: [0]),
    Row(why: "SYN-ACK elsewhere", steps: [.p(tcp(7, "", syn)), .s(tcp(9, "", syn))], equal: [], mismatch: .flags),
    Row(
      why: "RST in place of SYN-ACK", steps: [.p(tcp(7, "", syn)), .s(tcp(0, "", rst))], equal: [], mismatch: .flags),
    Row(
      why: "a port used again",
      steps: [
        .p(tcp(7, "", syn)), .s(tcp(7, "", syn)), .p(tcp(8, "", rst)), .s(tcp(8, "", rst)), .p(tcp(900, "", syn)),
        .s(tcp(900, "", syn)), .p(tcp(901, "x")), .s(tcp(901, "x")),
      ], equal: [0, 1, 2, 3]),
    Row(
      why: "a port used again, the old connection not over",
      steps: [.p(tcp(7, "", syn)), .s(tcp(7, "", syn)), .p(tcp(8, "a")), .p(tcp(900, "", syn))], equal: [0],
      mismatch: .unknown),
    Row(
      why: "last words of the connection before, from the secondary",
      steps: [
        .p(tcp(7, "", syn)), .s(tcp(7, "", syn)), .p(tcp(900, "", syn, ack: 10)), .s(tcp(8, ack: 5001)),
        .s(tcp(900, "", syn, ack: 10)),
      ], equal: [0, 1]),
    Row(
      why: "after a checkpoint both go on",
      steps: [.p(tcp(1, "ab")), .checkpoint, .p(tcp(3, "cd")), .s(tcp(3, "cd"))], equal: [1]),
    Row(
      why: "a checkpoint forgets what the secondary was ahead",
      steps: [.p(tcp(1, "a")), .s(tcp(1, "aXY", ack: 9000)), .checkpoint, .p(tcp(2, "bc")), .s(tcp(2, "bc"))],
      equal: [0, 1]),
    Row(
      why: "a checkpoint takes the secondary's ACK back",
      steps: [.p(tcp(1, ack: 10)), .s(tcp(1, ack: 20)), .checkpoint, .p(tcp(1, ack: 20))], equal: [0]),
    Row(
      why: "the primary's ACK counts as said by both after a checkpoint",
      steps: [.p(tcp(1, ack: 10)), .checkpoint, .p(tcp(1, ack: 10))], equal: [1]),
    Row(
      why: "without a secondary the primary has said 3.5 GiB that nobody saw: what follows is no retransmission",
      steps: [
        .p(tcp(1, "ab")), .s(tcp(1, "ab")), .restart, .p(tcp(0xe000_0000, "cd")), .p(tcp(0xe000_0002, "ef")),
        .s(tcp(0xe000_0000, "cdef")),
      ], equal: [0, 1, 2]),
    Row(
      why: "… and waits for the secondary",
      steps: [.p(tcp(1, "ab")), .s(tcp(1, "ab")), .restart, .p(tcp(0xe000_0000, "cd"))], equal: [0]),
    Row(
      why: "… nor does an ACK of before count as said by both",
      steps: [.p(tcp(1, ack: 10)), .s(tcp(1, ack: 10)), .restart, .p(tcp(1, ack: 10))], equal: [0]),
    Row(
      why: "a difference is healed by a checkpoint",
      steps: [.p(tcp(1, "ab")), .s(tcp(1, "aX")), .checkpoint, .p(tcp(3, "c")), .s(tcp(3, "c"))], equal: [1],
      mismatch: .payload),
    Row(
      why: "without one the flow waits",
      steps: [.p(tcp(1, "ab")), .s(tcp(1, "aX")), .p(tcp(3, "c")), .s(tcp(3, "c"))], equal: [], mismatch: .payload),
    Row(
      why: "a difference is healed by a checkpoint, however far the primary has come meanwhile",
      steps: [
        .p(tcp(1, "ab")), .s(tcp(1, "aX")), .p(tcp(3, "c", ack: 6000)), .checkpoint, .p(tcp(4, "d", ack: 6000)),
        .s(tcp(4, "d")), .p(tcp(2, "bc")),
      ], equal: [2, 3], mismatch: .payload),
    Row(why: "UDP", steps: [.p(udp([1])), .s(udp([1], id: 99))], equal: [0]),
    Row(
      why: "UDP, the secondary first", steps: [.s(udp([1])), .s(udp([2])), .p(udp([1])), .p(udp([2]))], equal: [0, 1]),
    Row(why: "UDP without payload", steps: [.p(udp([])), .s(udp([]))], equal: [0]),
    Row(why: "UDP, other bytes", steps: [.p(udp([1])), .s(udp([2]))], equal: [], mismatch: .payload),
    Row(why: "UDP, longer", steps: [.p(udp([1])), .s(udp([1, 2]))], equal: [], mismatch: .payload),
    Row(
      why: "UDP in another order", steps: [.p(udp([1])), .p(udp([2])), .s(udp([2]))], equal: [], mismatch: .payload),
    Row(why: "UDP, another port", steps: [.p(udp([1])), .s(udp([1], port: 5))], equal: []),
    Row(
      why: "UDP of another port in any order",
      steps: [.p(udp([1])), .p(udp([2], port: 5)), .s(udp([2], port: 5)), .s(udp([1]))], equal: [1, 0]),
    Row(why: "ping", steps: [.p(echoReply([1])), .s(echoReply([1]))], equal: [0]),
    Row(why: "ping, version 6", steps: [.p(echoReply([1], version: 6)), .s(echoReply([1], version: 6))], equal: [0]),
    Row(
      why: "ping, another number", steps: [.p(echoReply([1])), .s(echoReply([1], sequence: 2))], equal: [],
      mismatch: .payload),
    Row(
      why: "ARP in any order", steps: [.p(arp(1)), .p(arp(2)), .s(arp(2)), .s(arp(3)), .p(arp(3))], equal: [1, 2]),
    Row(why: "ARP once is not twice", steps: [.p(arp(1)), .p(arp(1)), .s(arp(1))], equal: [0]),
    Row(why: "ARP before a checkpoint", steps: [.s(arp(1)), .checkpoint, .p(arp(1))], equal: []),
    Row(
      why: "what the secondary compares need not come from it",
      steps: [.p(tcp(1, "ab")), .s(tcp(1, "ab")), .agreed(tcp(3, "cd")), .p(tcp(5, "ef")), .s(tcp(5, "ef"))],
      equal: [0, 1]),
    Row(
      why: "… and is not compared if it does, in a frame of its own or with its neighbours",
      steps: [
        .p(tcp(1, "ab")), .agreed(tcp(3, "cd")), .p(tcp(5, "ef")), .s(tcp(3, "XX")), .s(tcp(1, "abXXef")),
      ], equal: [0, 1]),
    Row(
      why: "… or has come before",
      steps: [.s(tcp(1, "abXXef")), .p(tcp(1, "ab")), .agreed(tcp(3, "cd")), .p(tcp(5, "ef"))], equal: [0, 1]),
    Row(
      why: "… but what is beside it is",
      steps: [.p(tcp(1, "ab")), .agreed(tcp(3, "cd")), .p(tcp(5, "ef")), .s(tcp(1, "abcdeX"))], equal: [],
      mismatch: .payload),
    Row(
      why: "sent again it is equal at once, when the secondary has acknowledged as much",
      steps: [
        .agreed(tcp(1, "ab")), .p(tcp(1, "ab")), .p(tcp(1, "ab", ack: 5001)), .s(tcp(9, "", ack: 5000)),
      ], equal: [0]),
    Row(
      why: "after a checkpoint the bytes of before are not those",
      steps: [
        .p(tcp(1, "ab")), .agreed(tcp(3, "cd")), .checkpoint, .p(tcp(1, "abcdef")), .s(tcp(1, "abXXef")),
      ], equal: [1]),
  ]

  @Test(arguments: rows) func rule(row: Row) {
    var comparator = Comparator()
    var token: UInt64 = 0
    var equal: [UInt64] = []
    var mismatch: Reason?
    for step in row.steps {
      let outcome: ComparisonOutcome
      switch step {
      case .p(let bytes):
        outcome = comparator.primary(bytes.span, token: token)
        token += 1
      case .s(let bytes): outcome = comparator.secondary(bytes.span)
      case .agreed(let bytes): outcome = comparator.agree(bytes.span)
      case .checkpoint:
        comparator.checkpoint()
        outcome = .consistent
      case .restart:
        comparator.restart()
        comparator.checkpoint()
        outcome = .consistent
      }
      if case .mismatch(let found) = outcome { mismatch = found.reason }
      while let token = comparator.nextEqual() { equal.append(token) }
    }
    #expect(equal == row.equal)
    #expect(mismatch == row.mismatch)
  }

  @Test func finAndItsAcknowledgement_forgetTheConnection() {
    var comparator = Comparator()
    for _ in 0..<2 {
      let bytes = Self.tcp(1, "ab", Self.fin, ack: 5001)
      #expect(comparator.primary(bytes.span, token: 1) == .consistent)
      #expect(comparator.secondary(bytes.span) == .consistent)
      #expect(comparator.heldFlows == 1)
      var peer = TCPSegment(isIncoming: true, sequence: 5000, acknowledgement: 3, flags: Self.fin)
      comparator.input(peer.bytes.span)
      #expect(comparator.heldFlows == 1)
      peer.acknowledgement = 4
      comparator.input(peer.bytes.span)
      #expect(comparator.heldFlows == 0 && comparator.heldBytes == 0)
    }
  }

  @Test func resetOfThePeer_forgetsTheConnection_onceItIsCompared() {
    var comparator = Comparator()
    let bytes = Self.tcp(1, "ab")
    _ = comparator.primary(bytes.span, token: 1)
    comparator.input(TCPSegment(isIncoming: true, sequence: 5000, flags: TCPSegment.rst).bytes.span)
    #expect(comparator.heldFlows == 1)
    _ = comparator.secondary(bytes.span)
    #expect(comparator.nextEqual() == 1)
    #expect(comparator.heldFlows == 0)
  }

  /// A reset that is not exactly what the guest expects next, a FIN of long ago, an acknowledgement of what was not sent: the guest
  /// goes on, and so does the comparison.
  @Test func forgedFrames_endNothing() {
    var comparator = Comparator()
    let fin = Self.tcp(1, "ab", Self.fin)
    _ = comparator.primary(fin.span, token: 1)
    _ = comparator.secondary(fin.span)
    for sequence in [0, 4999, 5001, 1 << 31] as [UInt32] {
      comparator.input(TCPSegment(isIncoming: true, sequence: sequence, flags: TCPSegment.rst).bytes.span)
    }
    comparator.input(TCPSegment(isIncoming: true, sequence: 4000, acknowledgement: 9999, flags: Self.fin).bytes.span)
    comparator.input(TCPSegment(isIncoming: true, sequence: 5000, acknowledgement: 9999, flags: Self.fin).bytes.span)
    #expect(comparator.heldFlows == 1)
  }
}
