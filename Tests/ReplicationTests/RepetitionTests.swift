import Replication
import Testing

@Suite("Repetition at a takeover") struct RepetitionTests {
  private static let header = [UInt8](repeating: 0, count: 12)

  private func needed(_ sent: [TCPSegment], _ received: [TCPSegment] = []) -> [Int] {
    Repetition.needed(
      sent: sent.map { Self.header + $0.bytes },
      received: received.map { segment in
        var segment = segment
        segment.isIncoming = true
        return Self.header + segment.bytes
      }, header: Self.header.count)
  }

  private let data = TCPSegment(sequence: 100, payload: [1, 2, 3])

  @Test func unacknowledgedData_isRepeated_acknowledgedIsNot() {
    #expect(needed([data]) == [0])
    #expect(needed([data], [TCPSegment(acknowledgement: 102)]) == [0])
    #expect(needed([data], [TCPSegment(acknowledgement: 103)]) == [])
    #expect(needed([data], [TCPSegment(acknowledgement: 103), TCPSegment(acknowledgement: 90)]) == [])
    #expect(needed([data], [TCPSegment(acknowledgement: 104)]) == [0], "more than was sent: not its client's")
  }

  @Test func input_thatTheGuestHasNotAcknowledged_isGivenAgain() {
    func client(_ sequence: UInt32, _ payload: [UInt8], port: UInt16 = 40000, flags: UInt8 = TCPSegment.ack) -> [UInt8]
    {
      TCPSegment(peerPort: port, isIncoming: true, sequence: sequence, flags: flags, payload: payload).bytes
    }
    let received = [
      client(0xffff_fffe, [1, 2, 3, 4]), client(2, [5]), client(3, []),
      client(3, [], flags: TCPSegment.fin | TCPSegment.ack),
      client(7, [1], port: 1), client(9, [], port: 2, flags: TCPSegment.syn),
      client(9, [1], port: 2, flags: TCPSegment.rst),
    ]
    let flow = Frame(TCPSegment().bytes.span).key
    func again(_ acknowledged: [FlowKey: UInt32?]) -> [Int] {
      Repetition.input(given: received, acknowledged: acknowledged, header: 0)
    }
    #expect(again([flow: 2]) == [1, 3])
    #expect(again([flow: 4]) == [], "all of it has arrived")
    #expect(again([flow: nil]) == [0, 1, 3])
    #expect(again([:]) == [], "nothing of it left early")
  }

  @Test func sequenceNumbersWrap() {
    let last = TCPSegment(sequence: 0xffff_fffe, payload: [1, 2, 3])
    #expect(needed([last], [TCPSegment(acknowledgement: 0)]) == [0])
    #expect(needed([last], [TCPSegment(acknowledgement: 1)]) == [])
  }

  /// The end of a connection that the client knows of: anything repeated would be answered, and that by a reset.
  @Test func overConnection_isLeftAlone() {
    let end = TCPSegment(sequence: 103, flags: TCPSegment.fin | TCPSegment.ack)
    let sent = [data, end, TCPSegment(sequence: 104)]
    #expect(needed(sent, [TCPSegment(acknowledgement: 104, flags: TCPSegment.fin | TCPSegment.ack)]) == [])
    #expect(needed(sent, [TCPSegment(acknowledgement: 103)]) == [1, 2])
  }

  @Test func bareAcknowledgements_onlyTheLast() {
    let bare = TCPSegment(sequence: 103)
    #expect(needed([bare, bare, bare], [TCPSegment(acknowledgement: 103)]) == [2])
    #expect(needed([bare, data], [TCPSegment(acknowledgement: 100)]) == [1])
  }

  @Test func flowsAreApart_andOthersAreAllRepeated() {
    var other = data
    other.peerPort = 1
    #expect(needed([data, other], [TCPSegment(acknowledgement: 103)]) == [1])
    let datagram = Self.header + udp([1])
    #expect(Repetition.needed(sent: [datagram, Self.header, []], received: [[], datagram], header: 12) == [0])
  }
}
