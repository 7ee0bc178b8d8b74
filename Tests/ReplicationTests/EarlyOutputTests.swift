import Testing

@testable import Replication

/// A secondary's memory of what its primary let out early.
@Suite("Early output") struct EarlyOutputTests {
  private let key = SharedKey([UInt8](repeating: 3, count: 32))
  private let header = [UInt8](repeating: 0, count: 12)

  private func told(_ frame: [UInt8], _ teller: inout EarlyTeller, epoch: UInt64 = 1) -> EarlyOutput? {
    unsafe frame.withUnsafeBytes { unsafe teller.output($0, header: 12, epoch: epoch) }
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
    for frame in said { _ = ledger.said(frame, header: 12, isMarked: true) }
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
    _ = ledger.said(frame("xyz", at: 3), header: 12, isMarked: true)
    ledger.loaded(epoch: 1)
    _ = ledger.said(frame("def", at: 6), header: 12, isMarked: true)
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
      for port in [80, 82] as [UInt16] {
        let bytes = header + TCPSegment(guestPort: port, acknowledgement: acknowledgement).bytes
        _ = ledger.said(bytes, header: 12, isMarked: false)
      }
    }
    let first = Frame(TCPSegment(guestPort: 80).bytes.span).key
    let second = Frame(TCPSegment(guestPort: 81).bytes.span).key
    let known = ledger.acknowledgements
    #expect(known == [first: 9, second: nil], "of the third flow nothing left early")
  }

  @Test func tooMuch_isRefused_andNotTold() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    let piece = frame("a", at: 1)
    for epoch in 1...3 as ClosedRange<UInt64> {
      var added = 0
      while let output = told(piece, &teller, epoch: epoch), ledger.add(output, epoch: epoch) { added += 1 }
      #expect(added == EarlyLedger.pieceLimit, "in each epoch, and two of them at a time")
      if epoch < 2 { continue }
      let fits = ledger.add(.init(flow: .none, sequence: 1, count: 1, code: [], number: 0), epoch: epoch)
      #expect(!fits)
      ledger.received(epoch: epoch - 1)
    }
  }

  /// More flows than are kept: what was said there is not known any more, and must not be taken for not said yet.
  @Test func saidInOneFlowTooMany_isDifferent() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    for index in 0..<EarlyLedger.pieceLimit {
      let port = UInt16(index % 32768)
      _ = ledger.said(header + TCPSegment(guestPort: 1, peerPort: port).bytes, header: 12, isMarked: false)
    }
    _ = ledger.said(frame("abc", at: 7), header: 12, isMarked: true)
    let output = told(frame("abc", at: 7), &teller)
    _ = ledger.add(try #require(output), epoch: 1)
    let findings = ledger.settle()
    let isEmpty = ledger.isEmpty
    #expect(findings.count == 1 && findings.first != .equal && isEmpty)
  }

  // MARK: What the primary has to see

  /// A ledger that was told of these, or is.
  private func ledger(told: [[UInt8]]) throws -> EarlyLedger {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    for frame in told {
      let output = self.told(frame, &teller)
      _ = ledger.add(try #require(output), epoch: 1)
    }
    return ledger
  }

  private func ask(upTo end: UInt32, acknowledgement: UInt32 = 0) -> AskedOutput {
    AskedOutput(flow: Frame(TCPSegment().bytes.span).key, end: end, acknowledgement: acknowledgement)
  }

  @Test func whatWasTold_isComparedHere_whoeverIsFirst() throws {
    var before = try ledger(told: [frame("abc", at: 7), frame("defg", at: 10)])
    let sent = [("abc", 7), ("de", 10), ("fg", 12)].map { text, at in
      before.said(frame(text, at: UInt32(at)), header: 12, isMarked: text == "abc")
    }
    #expect(sent == [false, true, false], "half of a piece may be something else")
    let found = before.settle()
    #expect(found == [.equal, .equal])

    var after = EarlyLedger(key: key)
    let isSent = after.said(frame("abc", at: 7), header: 12, isMarked: true)
    #expect(!isSent, "the primary will say what becomes of its own")
    var teller = EarlyTeller(key: key)
    let output = told(frame("abc", at: 7), &teller)
    _ = after.add(try #require(output), epoch: 1)
    let (findings, asked) = (after.settle(), after.ask(ask(upTo: 10), epoch: 1))
    #expect(findings == [.equal] && asked?.count == 1, "for what it acknowledges")
  }

  @Test func whatIsNotMarked_orNotTold_isSent() throws {
    var ledger = try ledger(told: [frame("abc", at: 7)])
    let marked = ledger.said(frame("GET", at: 20), header: 12, isMarked: true)
    let unmarked = ledger.said(frame("STORED", at: 23), header: 12, isMarked: false)
    let isBare = ledger.said(frame("", at: 29), header: 12, isMarked: false)
    let isDatagram = ledger.said(header + [UInt8](repeating: 1, count: 60), header: 12, isMarked: true)
    #expect(!marked && unmarked && isBare && isDatagram)
  }

  @Test func asked_sendsWhatWasKeptBack_andKeepsBackNoMoreBefore() throws {
    var ledger = EarlyLedger(key: key)
    for (text, at) in [("abc", 7), ("def", 10), ("ghi", 13)] {
      let isSent = ledger.said(frame(text, at: UInt32(at)), header: 12, isMarked: true)
      #expect(!isSent)
    }
    #expect(ledger.ask(ask(upTo: 13), epoch: 1) == [frame("abc", at: 7), frame("def", at: 10)])
    #expect(ledger.ask(ask(upTo: 22), epoch: 1) == [frame("ghi", at: 13)], "each once")
    let isSent = ledger.said(frame("jkl", at: 16), header: 12, isMarked: true)
    let isKept = ledger.said(frame("mno", at: 22), header: 12, isMarked: true)
    #expect(isSent && !isKept)
  }

  /// The primary waits for an acknowledgement that the secondary's guest gave with what it kept back, or will.
  @Test func asked_forAnAcknowledgement_isAnswered() throws {
    func frame(_ text: String, at sequence: UInt32, _ acknowledgement: UInt32) -> [UInt8] {
      header + TCPSegment(sequence: sequence, acknowledgement: acknowledgement, payload: Array(text.utf8)).bytes
    }
    var ledger = try ledger(told: [frame("abc", at: 7, 50), frame("def", at: 10, 60)])
    let first = ledger.said(frame("abc", at: 7, 50), header: 12, isMarked: true)
    #expect(!first)
    #expect(ledger.ask(ask(upTo: 10, acknowledgement: 50), epoch: 1) == [frame("abc", at: 7, 50)])
    #expect(ledger.ask(ask(upTo: 10, acknowledgement: 60), epoch: 1) == [])
    let second = ledger.said(frame("def", at: 10, 60), header: 12, isMarked: true)
    #expect(second, "though it is compared here")
  }

  @Test func epochsAhead_waitForTheGuest() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    for epoch in 1...3 as ClosedRange<UInt64> {
      let output = told(frame("abc", at: 7), &teller, epoch: epoch)
      _ = ledger.add(try #require(output), epoch: epoch)
    }
    #expect(ledger.ask(ask(upTo: 99), epoch: 3) == [])
    // The guest is in epoch 1, and says something else there.
    _ = ledger.said(frame("xyz", at: 7), header: 12, isMarked: true)
    let first = ledger.takeContradictions().count
    ledger.received(epoch: 1)
    ledger.loaded(epoch: 1)
    _ = ledger.said(frame("abc", at: 7), header: 12, isMarked: true)
    let second = ledger.takeContradictions().count
    #expect(first == 1 && second == 0 && ledger.checkpoint == 1)
    ledger.received(epoch: 2)
    ledger.loaded(epoch: 2)
    let isSent = ledger.said(frame("jkl", at: 90), header: 12, isMarked: true)
    #expect(isSent, "asked for in epoch 3")
    let old = ledger.ask(ask(upTo: 99), epoch: 2)
    #expect(old == [], "from before the checkpoint")
  }

  /// A survivor whose guest has contradicted what clients were told resets that connection, also if that was found before.
  @Test func contradiction_isFoundAgainAtTheTakeover() throws {
    var ledger = try ledger(told: [frame("abc", at: 7), frame("def", at: 10)])
    for (text, at) in [("abd", 7), ("def", 10)] {
      _ = ledger.said(frame(text, at: UInt32(at)), header: 12, isMarked: true)
    }
    let flows = ledger.takeContradictions()
    #expect(flows.count == 1)
    let findings = ledger.settle()
    #expect(findings.count == 2 && findings.contains(.equal) && findings.contains { $0 != .equal })
  }

  // MARK: Epochs in which nothing is looked for

  @Test(arguments: [EarlySearch.soon, .on]) func nothingIsLookedFor_nothingIsKept(next: EarlySearch) throws {
    let text = frame("abc", at: 7)
    var ledger = EarlyLedger(key: key)
    ledger.loaded(epoch: 1, search: .off)
    let isSent = ledger.said(text, header: 12, isMarked: true)
    #expect(isSent && ledger.ownBytes == 0)
    ledger.loaded(epoch: 2, search: next)
    let isSentThen = ledger.said(text, header: 12, isMarked: true)
    #expect(!isSentThen && ledger.ownBytes == text.count)
  }

  /// A primary does not: what its guest said is not known, and clients must not get other bytes.
  @Test func toldInSuchAnEpoch_countsAsDifferent() throws {
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    ledger.loaded(epoch: 1, search: .off)
    let output = told(frame("abc", at: 7), &teller, epoch: 2)
    _ = ledger.add(try #require(output), epoch: 2)
    _ = ledger.said(frame("abc", at: 7), header: 12, isMarked: true)
    let findings = ledger.settle()
    #expect(findings.count == 1 && findings != [.equal])
  }

  // MARK: How far the guest has sent

  @Test func acknowledgeable_isWhatTheGuestHasSent_whileItHasNotSaidAll() throws {
    let flow = Frame(TCPSegment().bytes.span).key
    var ledger = try ledger(told: [frame("abc", at: 0xffff_fffe), frame("def", at: 1)])
    // At first as far as the primary's had, which was at the same checkpoint; what it sends again says nothing.
    var limits = [ledger.acknowledgeable(flow)]
    for (text, at) in [("old", 0xffff_fff0), ("ab", 0xffff_fffe), ("cd", 0), ("ef", 2)] as [(String, UInt32)] {
      _ = ledger.said(frame(text, at: at), header: 12, isMarked: true)
      limits.append(ledger.acknowledgeable(flow))
    }
    #expect(limits == [0xffff_fffe, 0xffff_fffe, 0, 2, nil])
  }

  /// The primary is an epoch ahead: its clients acknowledge what the guest here says after the next checkpoint, or, if that never
  /// comes whole, as a survivor's.
  @Test func acknowledgeable_knowsOfEpochsAhead() throws {
    let flow = Frame(TCPSegment().bytes.span).key
    var teller = EarlyTeller(key: key)
    var ledger = EarlyLedger(key: key)
    let output = told(frame("abc", at: 7), &teller, epoch: 2)
    _ = ledger.add(try #require(output), epoch: 2)
    let ahead = ledger.acknowledgeable(flow)
    _ = ledger.settle()
    let here = ledger.acknowledgeable(flow)
    ledger.received(epoch: 2)
    ledger.loaded(epoch: 2)
    let after = ledger.acknowledgeable(flow)
    #expect(ahead == 7 && here == 7 && after == nil)
  }

  @Test func anotherConnectionOfTheSameName_owesNothing() throws {
    let flow = Frame(TCPSegment().bytes.span).key
    var ledger = try ledger(told: [frame("abc", at: 7)])
    _ = ledger.said(
      header + TCPSegment(sequence: 90_000, flags: TCPSegment.syn | TCPSegment.ack).bytes, header: 12, isMarked: false)
    let (limit, isEmpty) = (ledger.acknowledgeable(flow), ledger.isEmpty)
    #expect(limit == nil && isEmpty)
    let findings = ledger.settle()
    #expect(findings == [])
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
