import Testing

@testable import Replication

/// A secondary's memory of what its primary let out early.
@Suite("Early output") struct EarlyOutputTests {
  private let key = SharedKey([UInt8](repeating: 3, count: 32))
  private let header = [UInt8](repeating: 0, count: 12)

  private func told(_ frame: [UInt8], _ teller: inout EarlyTeller) -> EarlyOutput? {
    unsafe frame.withUnsafeBytes { unsafe teller.output($0, header: 12) }
  }

  private func frame(_ text: String, at sequence: UInt32, port: UInt16 = 80) -> [UInt8] {
    header + TCPSegment(guestPort: port, sequence: sequence, payload: Array(text.utf8)).bytes
  }

  /// What a survivor finds whose primary has let these out early, and whose guest says those.
  private func findings(told: [[UInt8]], said: [[UInt8]]) throws -> (findings: [EarlyLedger.Finding], left: Bool) {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    for frame in told {
      let output = self.told(frame, &teller)
      let fits = ledger.add(try #require(output), epoch: 1)
      #expect(fits)
    }
    for frame in said { ledger.said(frame, header: 12) }
    let findings = ledger.settle()
    return (findings, !ledger.isEmpty)
  }

  @Test func sameBytes_areEqual_whateverTheSegments() throws {
    for said in [["abcdef"], ["abc", "def"], ["a", "bcde", "f"], ["abcd", "cdef"]] {
      var at: UInt32 = 0xffff_fffe
      var frames: [[UInt8]] = []
      for text in said {
        if text == "cdef" { at &-= 2 }
        frames.append(frame(text, at: at))
        at &+= UInt32(text.utf8.count)
      }
      let (findings, left) = try findings(
        told: [frame("ab", at: 0xffff_fffe), frame("cdef", at: 0)], said: frames.shuffled())
      #expect(findings == [.equal, .equal] && !left, "\(said)")
    }
  }

  @Test func otherBytes_areDifferent() throws {
    let (findings, left) = try findings(told: [frame("abc", at: 7)], said: [frame("abd", at: 7)])
    guard case .different(let output) = findings.first else { return #expect(Bool(false)) }
    #expect(output.sequence == 7 && output.end == 10 && !left)
  }

  @Test func notSaidYet_isLeftForLater() throws {
    for said in [[], [frame("ab", at: 7)], [frame("abc", at: 7, port: 81)]] {
      let (findings, left) = try findings(told: [frame("abc", at: 7)], said: said)
      #expect(findings == [] && left)
    }
  }

  @Test func checkpoint_endsWhatWasToldBeforeIt_andWhatWasSaid() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    for (epoch, text) in [(1, "abc"), (2, "def")] as [(UInt64, String)] {
      let output = told(frame(text, at: UInt32(epoch) * 3), &teller)
      let fits = ledger.add(try #require(output), epoch: epoch)
      #expect(fits)
    }
    ledger.said(frame("xyz", at: 3), header: 12)
    ledger.loaded(epoch: 1)
    ledger.said(frame("def", at: 6), header: 12)
    let findings = ledger.settle()
    let isEmpty = ledger.isEmpty
    #expect(findings == [.equal] && isEmpty)
  }

  @Test func acknowledgements_areKnown_howeverLongAgo() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    for port in [80, 81] as [UInt16] {
      let output = told(frame("abc", at: 7, port: port), &teller)
      _ = ledger.add(try #require(output), epoch: 1)
    }
    for acknowledgement in [5, 9, 7] as [UInt32] {
      ledger.said(header + TCPSegment(acknowledgement: acknowledgement).bytes, header: 12)
      ledger.said(header + TCPSegment(guestPort: 82, acknowledgement: acknowledgement).bytes, header: 12)
    }
    let first = Frame(TCPSegment(guestPort: 80).bytes.span).key
    let second = Frame(TCPSegment(guestPort: 81).bytes.span).key
    let known = ledger.acknowledgements
    #expect(known == [first: 9, second: nil], "of the third flow nothing left early")
  }

  @Test func tooMuch_isRefused() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    let made = told(frame("a", at: 1), &teller)
    let output = try #require(made)
    var added = 0
    while ledger.add(output, epoch: 1) { added += 1 }
    #expect(added == EarlyLedger.pieceLimit)
  }

  // MARK: Resets

  /// The ones' complement sum of a frame's TCP header with its pseudo-header, and of its IPv4 header.
  private func sums(_ bytes: [UInt8]) -> [UInt32] {
    func sum(_ bytes: ArraySlice<UInt8>, _ start: UInt32) -> UInt32 {
      var sum = start
      for (index, byte) in bytes.enumerated() { sum += UInt32(byte) << (index % 2 == 0 ? 8 : 0) }
      while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
      return sum
    }
    if bytes[26] == 0x45 { return [sum(bytes[26..<46], 0), sum(bytes[38..<66], 26)] }
    return [0xffff, sum(bytes[34..<86], 26)]
  }

  @Test(arguments: [4, 6]) func reset_isWellFormed(version: Int) {
    let guest = TCPSegment(
      version: version, sequence: 100, acknowledgement: 55, options: [1, 1, 1, 1], payload: [1, 2, 3])
    let own = ResetFrame.of(header + guest.bytes, header: 12, sequence: 4711)
    let peer = TCPSegment(
      version: version, isIncoming: true, sequence: 200, acknowledgement: 77, flags: TCPSegment.fin | TCPSegment.ack,
      payload: [5])
    let answer = ResetFrame.answering(header + peer.bytes, header: 12, sequence: 77)
    let key = Frame(guest.bytes.span).key
    for (reset, sequence, acknowledgement) in [(own, 4711, 55), (answer, 77, 202)] as [([UInt8], UInt32, UInt32)] {
      let frame = Frame(Array(reset[12...]).span)
      #expect(frame.kind == .tcp && frame.key == key && frame.payload.isEmpty)
      #expect(frame.flags == [.rst, .ack])
      #expect(frame.sequence == sequence && frame.acknowledgement == acknowledgement)
      #expect(sums(reset) == [0xffff, 0xffff], "version \(version)")
    }
  }
}
