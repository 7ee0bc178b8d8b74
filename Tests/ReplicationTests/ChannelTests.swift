import CLinux
import Glibc
import Replication
import StateCodec
import Synchronization
import Testing

@Suite("Messages") struct MessageTests {
  static let all: [Message] = [
    .configuration(term: 3, description: [1, 2, 3]), .input(card: 0, number: 7, frame: [9]),
    .inputAcknowledged(card: 1, count: 1 << 40),
    .output(card: 0, base: 3, frame: []), .disk(index: 1, epoch: 2, position: 512, count: 0, zero: 0, bytes: [1, 2]),
    .pages(epoch: 5, run: [UInt8](repeating: 3, count: 100)),
    .checkpoint(
      epoch: 6, pages: 12, given: [4, 5], mappings: [2], addresses: [7], held: [[], [3, 4]], wait: 9, search: .soon,
      state: [1]),
    .received(epoch: 6),
    .loaded(epoch: 6, nanoseconds: 9),
    .heartbeat(term: 1, time: 2), .farewell(guestEnded: true), .admission(refusal: "busy", term: 4), .takeOver,
    .started(card: 0, epoch: 4, frame: [5, 6]),
    .early(
      card: 0, epoch: 3,
      outputs: [EarlyOutput(flow: flow, sequence: 9, count: 2, code: [UInt8](repeating: 7, count: 16), number: 1)]),
    .ask(card: 0, epoch: 3, output: AskedOutput(flow: flow, end: 11, acknowledgement: 12)),
    .contradicted(card: 0, base: 2, flow: flow),
    .piece(
      card: 0, base: 2,
      piece: EarlyOutput(flow: flow, sequence: 9, count: 2, code: [UInt8](repeating: 7, count: 16), number: 1),
      acknowledgement: 3),
  ]
  private static let flow = FlowKey(
    source: .init(high: 1, low: 2), destination: .init(high: 3, low: 4), sourcePort: 80, destinationPort: 5, proto: 6,
    version: 6, vlan: 7)

  @Test func everyKind_isInTheList_andNoOtherIsTaken() {
    let kinds = Set(Self.all.map { $0.encoded[0] })
    #expect(kinds == Set(1...18))
    for kind in 0...255 as ClosedRange<UInt8> where !kinds.contains(kind) {
      for count in [0, 1, 64] {
        #expect(throws: StateError.self) { try Message(decoding: [kind] + [UInt8](repeating: 0, count: count)) }
      }
    }
  }

  @Test(arguments: all) func roundTrip(message: Message) throws {
    #expect(try Message(decoding: message.encoded) == message)
  }

  @Test(arguments: all) func everyTruncation_isRefused(message: Message) {
    let bytes = message.encoded
    for count in 0..<bytes.count { #expect(throws: StateError.self) { try Message(decoding: Array(bytes[..<count])) } }
    #expect(throws: StateError.self) { try Message(decoding: bytes + [0]) }
  }

  @Test func searchOfAnotherKind_isRefused() throws {
    func checkpoint(_ search: EarlySearch) -> [UInt8] {
      Message.checkpoint(
        epoch: 6, pages: 0, given: [4], mappings: [], addresses: [], held: [], wait: 9, search: search, state: []
      ).encoded
    }
    var bytes = checkpoint(.on)
    let place = try #require(zip(bytes, checkpoint(.off)).enumerated().first { $1.0 != $1.1 }?.offset)
    for value in 3...255 as ClosedRange<UInt8> {
      bytes[place] = value
      #expect(throws: StateError.self) { try Message(decoding: bytes) }
    }
  }

  /// Whatever a byte is changed to: a refusal, or some message; never a trap.
  @Test(arguments: all) func everyChangedByte_isSurvived(message: Message) {
    var bytes = message.encoded
    for index in bytes.indices {
      let old = bytes[index]
      for value in [0, 1, 0x7f, 0x80, 0xff, old ^ 1] as [UInt8] {
        bytes[index] = value
        _ = try? Message(decoding: bytes)
      }
      bytes[index] = old
    }
  }
}

@Suite("Runs of pages") struct PageRunTests {
  private func page(_ byte: UInt8) -> [UInt8] { [UInt8](repeating: byte, count: 4096) }

  private func run(_ pages: [(UInt64, UInt8)]) -> [UInt8] {
    var run: [UInt8] = []
    for (number, byte) in pages { unsafe page(byte).withUnsafeBytes { unsafe PageRun.append(number, $0, to: &run) } }
    return run
  }

  @Test func roundTrip_zerosAreShort() throws {
    let coded = run([(3, 0), (4, 7), (9, 0), (10, 9)])
    #expect(coded.count == 4 * 9 + 2 * 4096)
    var got: [Int: UInt8] = [:]
    try unsafe PageRun.decode(coded, pageCount: 11) { page, contents throws(StateError) in
      guard case .whole(let bytes) = unsafe contents else { throw .invalid("changes") }
      #expect(bytes.count == 4096)
      got[page] = unsafe bytes[4095]
    }
    #expect(got == [3: 0, 4: 7, 9: 0, 10: 9])
  }

  /// Any change of any density: what was, brought up by what is said, is what is; and never longer than a page.
  @Test(arguments: 0..<60 as Range<UInt64>) func changes_bringAPageUpToDate(seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    let old = (0..<4096).map { _ in UInt8.random(in: 0...3, using: &random) }
    var new = old
    for _ in 0..<Int.random(in: 0...(seed % 3 == 0 ? 2000 : 20), using: &random) {
      new[Int.random(in: 0..<4096, using: &random)] &+= 1
    }
    if seed == 0 { new = old }
    if seed == 1 { new[4095] = 0xff }
    var coded: [UInt8] = []
    unsafe new.withUnsafeBytes { new in
      unsafe old.withUnsafeBytes { unsafe PageRun.append(5, new, base: $0, to: &coded) }
    }
    #expect(coded.count <= 9 + 4096)
    if seed == 0 { #expect(coded.count == 11) }
    var got = old
    try unsafe PageRun.decode(coded, pageCount: 6) { page, contents throws(StateError) in
      #expect(page == 5)
      unsafe got.withUnsafeMutableBytes { place in
        switch unsafe contents {
        case .whole(let bytes): unsafe place.copyMemory(from: bytes)
        case .changes(let changes): unsafe PageRun.apply(changes, to: place)
        }
      }
    }
    #expect(got == new)
  }

  @Test func malformedChanges_areRefused() {
    let number: [UInt8] = [1, 0, 0, 0, 0, 0, 0, 0, 2]
    // An empty change, half of one, words beyond the page, more words than there are, more bytes than there are.
    let bad: [[UInt8]] = [
      [4, 0, 0, 0, 0, 0], [2, 0, 0, 0], [12, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [12, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
      [13, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], [1],
    ]
    for changes in bad {
      #expect(throws: StateError.self) {
        try unsafe PageRun.decode(number + changes, pageCount: 2) { _, _ throws(StateError) in }
      }
    }
  }

  @Test func malformed_isRefusedBeforeAnythingIsDone() {
    let good = run([(1, 1), (2, 0)])
    var badForm = good
    badForm[good.count - 1] = 9
    for bad in [Array(good.dropLast()), good + [1], badForm, run([(1, 1), (11, 1)])] {
      var calls = 0
      #expect(throws: StateError.self) {
        try unsafe PageRun.decode(bad, pageCount: 11) { _, _ throws(StateError) in calls += 1 }
      }
      #expect(calls == 0)
    }
  }
}

@Suite("Channel", .timeLimit(.minutes(1))) struct ChannelTests {
  static let key = SharedKey([UInt8](repeating: 0x42, count: 32))

  private func sockets() -> (CInt, CInt) {
    var ends: [CInt] = [0, 0]
    #expect(unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
    return (ends[0], ends[1])
  }

  /// Both ends after the handshake; nil where one refused.
  private func connect(
    _ first: SharedKey = key, _ second: SharedKey = key,
    sides: (Channel.Side, Channel.Side) = (.primary, .secondary)
  ) -> (Channel?, Channel?) {
    let (a, b) = sockets()
    final class Box: Sendable { let value = Mutex<Channel?>(nil) }
    let box = Box()
    var thread = pthread_t()
    let other = Body {
      box.value.withLock { $0 = try? Channel(descriptor: b, side: sides.1, key: second, timeout: 500) }
    }
    unsafe lx_thread_start(
      &thread,
      { @Sendable context in
        if let context = unsafe context { unsafe Unmanaged<Body>.fromOpaque(context).takeUnretainedValue().run() }
        return nil
      }, Unmanaged.passUnretained(other).toOpaque())
    let mine = try? Channel(descriptor: a, side: sides.0, key: first, timeout: 500)
    lx_thread_join(thread)
    return (mine, box.value.withLock { $0 })
  }

  @Test func sameKey_messagesArrive() throws {
    let (a, b) = connect()
    let (one, two) = (try #require(a), try #require(b))
    for message in MessageTests.all { try one.send(message) }
    sendQueued(one)
    for message in MessageTests.all { #expect(try two.receive() == message) }
    one.close()
    #expect(throws: ChannelError.closed) { try two.receive() }
  }

  /// Runs a sender until its queue is empty.
  private func sendQueued(_ channel: Channel) {
    let body = Body { _ = channel.runSender() }
    var thread = pthread_t()
    unsafe lx_thread_start(
      &thread,
      { @Sendable context in
        if let context = unsafe context { unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run() }
        return nil
      }, Unmanaged.passRetained(body).toOpaque())
    while !channel.isDrained { usleep(1000) }
  }

  @Test func anotherKey_isRefused() {
    let (a, b) = connect(Self.key, SharedKey([UInt8](repeating: 1, count: 32)))
    #expect(a == nil && b == nil)
  }

  /// A proof sent back, which is what two sides of the same role would be.
  @Test func ownProofReflected_isRefused() {
    let (a, b) = connect(sides: (.primary, .primary))
    #expect(a == nil && b == nil)
  }

  @Test func silentPeer_garbage_andOtherVersions_areRefusedInTime() {
    let (a, b) = sockets()
    let start = lx_monotonic_ns()
    #expect(throws: ChannelError.timedOut) { try Channel(descriptor: a, side: .primary, key: Self.key, timeout: 200) }
    #expect(lx_monotonic_ns() - start < 2_000_000_000)
    let (c, d) = sockets()
    let noise = [UInt8](repeating: 0x20, count: 100)
    _ = unsafe lx_send(d, noise, noise.count)
    #expect(throws: ChannelError.notAuthentic) {
      try Channel(descriptor: c, side: .primary, key: Self.key, timeout: 200)
    }
    let (e, f) = sockets()
    let old = Array("MVMMPAIR".utf8) + [0, 0, 0, 0] + [UInt8](repeating: 0, count: 32)
    _ = unsafe lx_send(f, old, old.count)
    #expect(throws: ChannelError.otherVersion(0)) {
      try Channel(descriptor: e, side: .primary, key: Self.key, timeout: 200)
    }
    for descriptor in [b, d, f] { close(descriptor) }
  }

  @Test func refusedPrimary_hearsWhy_andAnAdmittedOneGoesOn() throws {
    let (a, b) = connect()
    let (primary, secondary) = (try #require(a), try #require(b))
    secondary.refuse("busy")
    #expect(throws: ChannelError.refused("busy")) { try primary.awaitAdmission([1], term: 1, within: 1000) }
    let (c, d) = connect()
    let (next, other) = (try #require(c), try #require(d))
    #expect(throws: ChannelError.timedOut) { try next.awaitAdmission([1], term: 1, within: 50) }
    #expect(try other.receiveConfiguration() == (1, [1]))
    try other.admit()
    sendQueued(other)
    try next.awaitAdmission([2], term: 7, within: 1000)
    #expect(try other.receiveConfiguration() == (7, [2]))
  }

  @Test func fullQueue_isTold() throws {
    let (a, b) = sockets()
    _ = b
    let (one, _) = connect()
    _ = a
    let channel = try #require(one)
    var failure: ChannelError?
    for _ in 0..<600 {
      do throws(ChannelError) {
        try channel.send(.configuration(term: 1, description: [UInt8](repeating: 0, count: 1 << 20)))
      } catch {
        failure = error
        break
      }
    }
    #expect(failure == .sendQueueFull)
  }

  /// A thread before all others sends a record, not all that others queue meanwhile.
  @Test func flushOfOneRecord_leavesTheRestToTheSendingThread() throws {
    let (a, b) = connect()
    let (one, two) = (try #require(a), try #require(b))
    for number in 1...3 as ClosedRange<UInt64> {
      try one.post(.input(card: 0, number: number, frame: [UInt8](repeating: 0, count: 40 << 10)))
    }
    let next = { (milliseconds: UInt64) throws -> UInt64? in
      guard case .input(_, let number, _) = try two.receive(within: milliseconds) else { return nil }
      return number
    }
    one.flush(atMost: 1)
    #expect(try next(1000) == 1)
    #expect(throws: ChannelError.timedOut) { try next(20) }
    sendQueued(one)
    #expect(try [next(1000), next(1000)] == [2, 3])
    one.close()
  }
}
