import Devices
import GuestMemory
import Replication
import Synchronization
import Testing

@testable import Pair

/// What a secondary, and later a survivor, makes of what its primary has let out early.
@Suite("Early output of a primary that is gone") struct EarlyWatchTests {
  private let watch: EarlyWatch
  private let primary: Primary
  private let time = Box(Mutex<UInt64>(0))

  private final class Primary {
    var teller: EarlyTeller
    init(_ channel: Channel) { teller = EarlyTeller(channel) }
  }

  init() throws {
    watch = EarlyWatch(clock: { [time] in time.value.withLock { $0 } })
    let (first, second) = try channels()
    primary = Primary(first)
    watch.begin(second)
  }

  /// The primary lets this out early.
  private func tell(_ text: String, at sequence: UInt32, epoch: UInt64 = 1, port: UInt16 = 40000) throws {
    let frame = Segment(port: port, sequence: sequence, text: text).bytes
    let output = unsafe frame.withUnsafeBytes { unsafe primary.teller.output($0, header: NetHeader.size, epoch: epoch) }
    #expect(watch.add([try #require(output)], epoch: epoch) != nil)
  }

  private func say(_ text: String, at sequence: UInt32, acknowledging: UInt32 = 5000) {
    _ = watch.said(Segment(sequence: sequence, acknowledgement: acknowledging, text: text).bytes, isMarked: true)
  }

  private func request(_ number: UInt32, acknowledging: UInt32) -> [UInt8] {
    Segment(isIncoming: true, sequence: 5000 + 4 * number, acknowledgement: acknowledging, text: "get\n").bytes
  }

  private func given(_ frame: [UInt8]) -> [UInt8] {
    var frame = frame
    unsafe frame.withUnsafeMutableBytes { unsafe watch.giving($0) }
    return frame
  }

  private func acknowledgement(_ frame: [UInt8]) -> UInt32 {
    #expect(Segment.hasRightChecksum(frame))
    return Frame(Array(frame[12...]).span).acknowledgement
  }

  // MARK: Input that acknowledges what the guest has not said

  /// Linux drops a segment that acknowledges what it has not sent, with its data, and the client was told that it has come.
  @Test func input_acknowledgesNoMoreThanTheGuestHasSent() throws {
    try tell("one", at: 1000)
    try tell("two", at: 1003)
    #expect(acknowledgement(given(request(1, acknowledging: 1003))) == 1000)
    #expect(given(request(1, acknowledging: 990)) == request(1, acknowledging: 990))
    say("one", at: 1000)
    #expect(acknowledgement(given(request(2, acknowledging: 1006))) == 1003)
    say("two", at: 1003)
    #expect(given(request(2, acknowledging: 1006)) == request(2, acknowledging: 1006), "all is said")
  }

  @Test func input_withAPartialChecksum_keepsIt() throws {
    try tell("one", at: 1000)
    var frame = request(1, acknowledging: 1003)
    frame[0] = 1
    var expected = request(1, acknowledging: 1000)
    expected.replaceSubrange(62..<64, with: frame[62..<64])
    expected[0] = 1
    #expect(given(frame) == expected)
  }

  /// A follower's guest that lags: three requests, each sent with the reply to the one before, are all taken in.
  @Test func backend_givesAFollowerWhatItsGuestTakes_andASurvivorTheSame() throws {
    let tap = FakeTap()
    let traffic = Traffic(watch)
    let gate = OutputGate(mode: .none, clock: { 0 }, send: { TapOutput.send($0, to: tap) })
    let backend = try PairBackend(tap: tap, side: .following, gate: gate, log: InputLog(), traffic: traffic)
    backend.heed(watch)
    for number in 0..<3 as Range<UInt32> {
      try backend.log.append(UInt64(number) + 1, request(number, acknowledging: 1000 + 3 * number))
      if number < 2 { try tell("one", at: 1000 + 3 * number) }
    }
    func next() -> UInt32? {
      var buffer = [UInt8](repeating: 0, count: 2000)
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe backend.receive(into: $0) }
      return count > 0 ? acknowledgement(Array(buffer[..<count])) : nil
    }
    #expect([next(), next()] == [1000, 1000])
    #expect(watch.takeOver(backend.log) == [])
    backend.serve(traffic, early: watch)
    #expect([next(), next(), next(), next()] == [1000, 1000, 1000, nil], "one left in the log, two again")
    tap.arrive(request(3, acknowledging: 1006))
    #expect(next() == 1000, "it has still to say what clients know")
    for number in 0..<2 as Range<UInt32> {
      try send(Segment(sequence: 1000 + 3 * number, text: "one").bytes, backend)
    }
    tap.arrive(request(3, acknowledging: 1006))
    #expect(next() == 1006)
  }

  /// The guest sends a frame.
  private func send(_ frame: [UInt8], _ backend: PairBackend) throws {
    let memory = try GuestMemory(size: 1 << 20)
    try memory.write(Array(frame[12...]), at: 0x1000)
    var buffers = GuestBuffers()
    _ = buffers.append(address: 0x1000, count: UInt64(frame.count - 12), in: memory)
    #expect(
      backend.send(
        Array(frame[..<12]), buffers, offset: 0, count: UInt64(frame.count - 12), memory: memory) == .sent)
  }

  private final class Traffic: PairTraffic {
    let watch: EarlyWatch
    init(_ watch: EarlyWatch) { self.watch = watch }
    func input(_ number: UInt64, _ frame: UnsafeRawBufferPointer) {}
    var hasRoomForInput: Bool { true }
    func output(_ token: UInt64?, _ frame: UnsafeRawBufferPointer, _ marking: Marking) {
      if token == nil { _ = watch.said(unsafe Array(frame), isMarked: true) }
    }
    func leavesEarly(_ frame: UnsafeRawBufferPointer) -> UInt64? { nil }
    func started(_ frame: UnsafeRawBufferPointer) {}
    func gateIsFull() {}
    func flush() {}
    func outputEnded() {}
  }

  // MARK: What a survivor's guest says

  private func outgoing(_ text: String, at sequence: UInt32) -> [UInt8]? {
    let frame = Segment(sequence: sequence, text: text).bytes
    return verdict(unsafe frame.withUnsafeBytes { unsafe watch.outgoing($0, Frame($0, header: 12)) }, frame)
  }

  private func incoming(_ frame: [UInt8]) -> [UInt8]? {
    verdict(unsafe frame.withUnsafeBytes { unsafe watch.incoming($0, Frame($0, header: 12)) }, frame)
  }

  /// What leaves, or goes on to the guest; nil for nothing.
  private func verdict(_ verdict: EarlyWatch.Verdict, _ frame: [UInt8]) -> [UInt8]? {
    switch verdict {
    case .pass: frame
    case .drop: nil
    case .replace(let other): other
    }
  }

  private func isReset(_ frame: [UInt8]?) -> Bool { frame.map { $0[12 + 34 + 13] & 4 != 0 } ?? false }

  private func whole(_ text: String, at sequence: UInt32) -> [UInt8] { Segment(sequence: sequence, text: text).bytes }

  /// An empty frame in the guest's name.
  private func isProbe(_ frame: [UInt8]?, at sequence: UInt32) -> Bool {
    guard let frame else { return false }
    let parsed = Frame(Array(frame[12...]).span)
    return parsed.payload.isEmpty && parsed.flags == .ack && parsed.sequence == sequence
      && Segment.hasRightChecksum(frame)
  }

  @Test func saidAlike_goesOn_andIsCounted() throws {
    try tell("one", at: 1000)
    try tell("two", at: 1003)
    say("one", at: 1000)
    #expect(watch.takeOver(nil) == [])
    #expect(watch.counts.equal == 1)
    #expect(outgoing("two", at: 1003) == whole("two", at: 1003))
    #expect(outgoing("three", at: 1006) == whole("three", at: 1006))
    #expect(watch.counts.equal == 2 && watch.counts.reset == 0)
  }

  @Test func saidOtherwiseBefore_isResetAtTheTakeover_andStaysSo() throws {
    try tell("one", at: 1000)
    say("two", at: 1000)
    let resets = watch.takeOver(nil)
    #expect(resets.count == 1 && isReset(resets.first))
    #expect(watch.isWithheld(whole("two", at: 1000)))
    #expect(outgoing("more", at: 1003) == nil)
    let answer = incoming(request(1, acknowledging: 1003))
    #expect(isReset(answer) && Frame(Array(answer?[12...] ?? []).span).sequence == 1003)
    // Anybody can send a SYN, or a reset: only the guest's own SYN begins another connection of its name.
    for forged in [Segment(isIncoming: true, sequence: 1, flags: 2), Segment(isIncoming: true, sequence: 1, flags: 4)] {
      #expect(incoming(forged.bytes) == forged.bytes)
      #expect(outgoing("more", at: 1003) == nil)
    }
    #expect(outgoing("", at: 1003) == whole("", at: 1003), "the guest has the old one still, and says so")
    let answered = Segment(sequence: 7, flags: 18).bytes
    #expect(
      verdict(unsafe answered.withUnsafeBytes { unsafe watch.outgoing($0, Frame($0, header: 12)) }, answered)
        == answered)
    #expect(outgoing("new", at: 8) == whole("new", at: 8), "another connection of its name")
    #expect(watch.counts.reset == 1)
  }

  @Test func saidOtherwiseLater_isReset() throws {
    try tell("one", at: 1000)
    #expect(watch.takeOver(nil) == [])
    #expect(isReset(outgoing("two", at: 1000)))
    #expect(outgoing("two", at: 1000) == nil && watch.counts.reset == 1)
  }

  @Test func otherConnections_areNotConcerned() throws {
    try tell("one", at: 1000, port: 1)
    say("two", at: 1000)
    #expect(watch.takeOver(nil) == [])
    #expect(outgoing("three", at: 1003) == whole("three", at: 1003))
    #expect(!watch.isWithheld(whole("two", at: 1000)))
  }

  /// Of a large frame only its tail reached the client: a head of other bytes would make one of both.
  @Test(arguments: ["abc", "abX"]) func partOfAPiece_doesNotLeaveBeforeTheRestIsKnown(head: String) throws {
    try tell("abcdef", at: 1000)
    #expect(watch.takeOver(nil) == [])
    #expect(watch.isWithheld(whole(head, at: 1000)))
    #expect(isProbe(outgoing(head, at: 1000), at: 999), "the client is asked what it has")
    if head == "abc" {
      #expect(outgoing("def", at: 1003) == whole("def", at: 1003))
      #expect(outgoing("abc", at: 1000) == whole("abc", at: 1000), "sent again")
    } else {
      #expect(isReset(outgoing("def", at: 1003)))
      #expect(watch.counts.reset == 1)
    }
  }

  @Test func partThatTheClientHas_leaves_theRestIsCompared() throws {
    try tell("abcdef", at: 1000)
    #expect(watch.takeOver(nil) == [])
    #expect(incoming(request(1, acknowledging: 1003)) != nil)
    #expect(outgoing("abX", at: 1000) == whole("abX", at: 1000), "nobody reads it")
    #expect(isProbe(outgoing("de", at: 1003), at: 999))
    #expect(isReset(outgoing("f", at: 1005)))
  }

  @Test func pieceOfWhichTheClientHasNothing_isTheSurvivorsToSay() throws {
    try tell("abcdef", at: 1000)
    try tell("ghi", at: 1006)
    #expect(watch.takeOver(nil) == [])
    // It has something behind: SACK.
    var frame = request(1, acknowledging: 1000)
    frame[12 + 34 + 12] = 8 << 4
    frame.insert(contentsOf: [1, 1, 5, 10, 0, 0, 3, 0xeb, 0, 0, 3, 0xee], at: 12 + 34 + 20)
    frame[12 + 14 + 3] += 12
    #expect(incoming(frame) == frame)
    #expect(isProbe(outgoing("abX", at: 1000), at: 999))
    #expect(incoming(request(1, acknowledging: 1000)) != nil)
    #expect(outgoing("abX", at: 1000) == whole("abX", at: 1000))
    #expect(outgoing("YZ", at: 1003) == whole("YZ", at: 1003) && watch.counts.reset == 0)
  }

  @Test func acknowledgedBeforeTheTakeover_saysNothingOfWhatElseTheClientHas() throws {
    try tell("abcdef", at: 1000)
    let log = InputLog()
    try log.append(1, request(1, acknowledging: 1000))
    #expect(watch.takeOver(log) == [])
    #expect(isProbe(outgoing("abX", at: 1000), at: 999))
  }

  /// The guest may wait for an acknowledgement of what the client does not get.
  @Test func partWithoutTheRest_isResetInTheEnd() throws {
    try tell("abcdef", at: 1000)
    #expect(watch.takeOver(nil) == [])
    for _ in 0..<3 { #expect(isProbe(outgoing("abc", at: 1000), at: 999)) }
    time.value.withLock { $0 += 2_000_000_000 }
    #expect(isReset(outgoing("abc", at: 1000)))
    #expect(watch.counts.reset == 1)
  }
}
