import Devices
import GuestMemory
import MiniVMM
import Replication
import StateCodec
import Synchronization
import Testing
import VirtioLayout

@testable import Pair

/// What a guest says of its replies, well-meant and not.
@Suite("Reply sources") struct ReplySourcesTests {
  private static let ring: UInt64 = 0x2_0000
  private static let value: UInt64 = 0x8000
  let memory: GuestMemory
  let registers: PairRegisters
  let pages: SourcePages
  private let held: Held
  private var written: UInt64 = 0

  init() throws {
    let memory = try GuestMemory(size: 1 << 20)
    self.memory = memory
    registers = PairRegisters(memory, line: try InterruptLine())
    pages = SourcePages(memory)
    held = Held(ReplySources(memory, registers, pages))
    setRing(0, Self.ring)
    // From checkpoint 1 on: "hello" at the value's place.
    try memory.write(Array("hello".utf8), at: Self.value)
    for epoch in 1...2 as ClosedRange<UInt64> {
      _ = unsafe Array("hello".utf8).withUnsafeBytes { unsafe pages.standing($0, at: Self.value) }
      pages.cut(epoch, changed: [])
    }
  }

  private final class Held {
    var sources: ReplySources
    init(_ sources: consuming ReplySources) { self.sources = sources }
  }

  private func setRing(_ index: UInt64, _ address: UInt64) {
    registers.write(offset: PairRegister.ringSelect, size: 4, value: index)
    registers.write(offset: PairRegister.ringLow, size: 4, value: address & 0xffff_ffff)
    registers.write(offset: PairRegister.ringHigh, size: 4, value: address >> 32)
  }

  private typealias Source = (address: UInt64, length: UInt32, offset: UInt32)

  private mutating func tell(
    _ text: String, at sequence: UInt32 = 1000, sources: [Source], count: UInt8? = nil, number: UInt64? = nil,
    flags: UInt8 = 0
  ) throws {
    written = number ?? written + 1
    let at = Self.ring + (written - 1) % SourceRing.records * SourceRecord.size
    try memory.store(sequence, at: at + SourceRecord.sequence)
    try memory.store(UInt32(text.utf8.count), at: at + SourceRecord.length)
    try memory.store(UInt8(4), at: at + SourceRecord.version)
    try memory.store(count ?? UInt8(sources.count), at: at + SourceRecord.sourceCount)
    try memory.store(flags, at: at + SourceRecord.flags)
    try memory.store(UInt16(80), at: at + SourceRecord.localPort)
    try memory.store(UInt16(40000), at: at + SourceRecord.remotePort)
    try memory.store(UInt64(0x0a00_0002), at: at + SourceRecord.localAddress + 8)
    try memory.store(UInt64(0x0a00_0009), at: at + SourceRecord.remoteAddress + 8)
    for (index, source) in sources.enumerated() {
      let place = at + SourceRecord.sources + UInt64(index) * 16
      try memory.store(source.address, at: place)
      try memory.store(source.length, at: place + 8)
      try memory.store(source.offset, at: place + 12)
    }
    try memory.store(written, at: at + SourceRecord.number)
  }

  /// A TCP segment from 10.0.0.2:80 to 10.0.0.9:40000.
  private mutating func send(
    _ text: String, at sequence: UInt32 = 1000, flags: UInt8 = 16, buffers: [(UInt64, UInt64)] = []
  ) -> UInt64? {
    let payload = Array(text.utf8)
    func big(_ value: UInt32, _ bytes: Int) -> [UInt8] {
      (0..<bytes).map { UInt8(truncatingIfNeeded: value >> UInt32(8 * (bytes - 1 - $0))) }
    }
    var frame: [UInt8] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0] + big(UInt32(40 + payload.count), 2)
    frame += [0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 9] + big(80, 2) + big(40000, 2) + big(sequence, 4)
    frame += [0, 0, 0, 0, 5 << 4, flags, 0, 9, 0, 0, 0, 0] + payload
    let parsed = Frame(frame.span)
    var handed = GuestBuffers()
    for (address, count) in buffers { _ = handed.append(address: address, count: count, in: memory) }
    if case .since(let epoch) = (unsafe frame.withUnsafeBytes { unsafe held.sources.standing(parsed, $0, handed) }) {
      return epoch
    }
    return nil
  }

  /// What the guest hands the card is its file cache: 54 bytes of headers of its own making, then the pages themselves.
  @Test mutating func ownBuffers_areTheSource() throws {
    let headers: (UInt64, UInt64) = (0x1_0000, 54)
    try tell("hello", sources: [], flags: SourceRecord.ownBuffers)
    #expect(send("hello", buffers: [headers, (Self.value, 2), (Self.value + 2, 3)]) == 1)
    try tell("hello", at: 2000, sources: [], flags: SourceRecord.ownBuffers)
    #expect(send("hello", at: 2000, buffers: [headers, (Self.value, 4), (0x3_0000, 1)]) == nil, "a copy elsewhere")
    try tell("hello", at: 3000, sources: [], flags: SourceRecord.ownBuffers)
    #expect(send("hello", at: 3000, buffers: [headers, (Self.value, 4)]) == nil, "not all of it is there")
    try tell("hello", at: 4000, sources: [], flags: SourceRecord.ownBuffers)
    #expect(send("jello", at: 4000, buffers: [headers, (Self.value, 5)]) == nil, "other bytes than the page held")
  }

  private static let copied: [Source] = [(value, 5, 1)]

  @Test mutating func replyOfSynchronisedBytes_isOfTheirCheckpoint() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("$hello") == 1)
  }

  @Test mutating func notTold_isNot() throws {
    #expect(send("$hello") == nil)
    try tell("$hello", at: 2000, sources: Self.copied)
    #expect(send("$hello") == nil, "told of another place in the stream")
  }

  /// More than the ring holds is told meanwhile.
  @Test mutating func idle_nothingIsMarked_andAfterItAsBefore() throws {
    held.sources.isIdle = true
    for number in 0..<300 as Range<UInt32> {
      try tell("$hello", at: 1000 + 6 * number, sources: Self.copied)
      #expect(send("$hello", at: 1000 + 6 * number) == nil)
    }
    held.sources.isIdle = false
    try tell("$hello", at: 5000, sources: Self.copied)
    #expect(send("$hello", at: 5000) == 1)
    #expect(send("$hello", at: 5000) == nil, "sent again")
  }

  /// A server answers each write from the same constant, which every checkpoint holds: that says nothing of what was stored.
  /// In a time without a secondary nobody looks at what is sent, and another connection may have the name.
  @Test mutating func skipped_isNot_whetherItWasReadOrNot() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("$hello", at: 1) == nil)
    try tell("$hello", at: 2000, sources: Self.copied)
    held.sources.skip()
    #expect(send("$hello") == nil && send("$hello", at: 2000) == nil)
    try tell("$hello", at: 3000, sources: Self.copied)
    #expect(send("$hello", at: 3000) == 1)
  }

  private final class Told: PairTraffic {
    let markings = Mutex<[Marking]>([])
    func input(_ number: UInt64, _ frame: UnsafeRawBufferPointer) {}
    var hasRoomForInput: Bool { true }
    func output(_ token: UInt64?, _ frame: UnsafeRawBufferPointer, _ marking: Marking) {
      markings.withLock { $0.append(marking) }
    }
    func leavesEarly(_ frame: UnsafeRawBufferPointer) -> UInt64? { 1 }
    func started(_ frame: UnsafeRawBufferPointer) {}
    func gateIsFull() {}
    func flush() {}
    func outputEnded() {}
  }

  /// As above, where a survivor's back end gets a secondary.
  @Test mutating func toldBeforeForwarding_isNot() throws {
    let told = Told()
    let gate = OutputGate(mode: .coloPlusPlus, clock: { 0 }, send: { _ in true })
    let backend = try PairBackend(tap: Wire(), side: .serving, gate: gate, log: InputLog(), traffic: told)
    backend.useSources(memory, registers, pages)
    for (sequence, forwards) in [(1000, true), (2000, false)] as [(UInt32, Bool)] {
      try tell("$hello", at: sequence, sources: Self.copied)
      if forwards { backend.beginForwarding() }
      let frame = Array(Segment(sequence: sequence, text: "$hello").bytes[12...])
      try memory.write(frame, at: 0x3_0000)
      var buffers = GuestBuffers()
      _ = buffers.append(address: 0x3_0000, count: UInt64(frame.count), in: memory)
      let header = [UInt8](repeating: 0, count: 12)
      let result = backend.send(header, buffers, offset: 0, count: UInt64(frame.count), memory: memory)
      #expect(result == .sent)
    }
    #expect(told.markings.withLock { $0 } == [.unmarked, .marked])
  }

  @Test mutating func notTold_fromPagesThatEveryCheckpointHolds_isNot() throws {
    let (constant, text) = (0xb000 as UInt64, "STORED\r\n")
    try memory.write(Array(text.utf8), at: constant)
    for epoch in 3...4 as ClosedRange<UInt64> {
      _ = unsafe Array(text.utf8).withUnsafeBytes { unsafe pages.standing($0, at: constant) }
      pages.cut(epoch, changed: [])
    }
    let buffers: [(UInt64, UInt64)] = [(0x1_0000, 54), (constant, 8)]
    #expect(send(text, buffers: buffers) == nil)
    try tell("$hello", at: 2000, sources: Self.copied)
    #expect(send(text, at: 1992, buffers: buffers) == nil, "what is told begins behind it")
    #expect(send("$hello", at: 2000) == 1)
    try tell(text, at: 3000, sources: [], flags: SourceRecord.ownBuffers)
    #expect(send(text, at: 3000, buffers: buffers) == 3)
  }

  /// What the guest says it copied must be what it sends.
  @Test mutating func otherBytesThanTheSources_isNot() throws {
    try tell("$jello", sources: Self.copied)
    #expect(send("$jello") == nil)
  }

  @Test mutating func determinedByWhatHasChanged_isNot() throws {
    let index: UInt64 = 0x9000
    _ = unsafe [UInt8](repeating: 0, count: 8).withUnsafeBytes { unsafe pages.standing($0, at: index) }
    pages.cut(3, changed: [])
    let sources: [Source] = [(index, 8, SourceRecord.notCopied), (Self.value, 5, 1)]
    try tell("$hello", sources: sources)
    #expect(send("$hello") == 3)
    try memory.store(UInt64(1), at: index)
    try tell("$hello", at: 2000, sources: sources)
    #expect(send("$hello", at: 2000) == nil, "the value is as it was, but it is another key's now")
  }

  @Test mutating func everyByteOfASegmentMustBeTold() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("$hello+OK") == nil, "a write confirmed in the same segment")
    try tell("$hello", at: 2000, sources: Self.copied)
    try tell("$hello", at: 2006, sources: Self.copied)
    #expect(send("$hello$hello", at: 2000) == 1)
    try tell("$hello", at: 3000, sources: Self.copied)
    #expect(send("$he", at: 3000) == 1)
    #expect(send("llo", at: 3003) == 1)
  }

  @Test mutating func sentAgain_isHeld() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("$hello") == 1)
    #expect(send("$hello") == nil, "what was told of it is over")
  }

  @Test mutating func sequenceNumbersWrap() throws {
    try tell("$hello", at: 0xffff_fffd, sources: Self.copied)
    #expect(send("$hello", at: 0xffff_fffd) == 1)
  }

  @Test mutating func anotherConnectionOfTheSameName_isNot() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("x", at: 900) == nil)
    _ = send("", at: 999, flags: 0x12)
    #expect(send("$hello") == nil)
  }

  @Test mutating func endOfAConnection_isNot() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("$hello", flags: 17) == nil)
  }

  @Test mutating func constant_needsNothing() throws {
    try tell("+PONG", sources: [])
    #expect(send("+PONG") == 0)
  }

  /// A ring that was written over while nobody looked goes on from what is there.
  @Test mutating func lostRecords_areSkipped() throws {
    try tell("$hello", sources: Self.copied)
    #expect(send("$hello") == 1)
    try tell("$hello", at: 2000, sources: Self.copied, number: 2 + SourceRing.records)
    #expect(send("$hello", at: 2000) == 1)
    try tell("$hello", at: 3000, sources: Self.copied)
    #expect(send("$hello", at: 3000) == 1)
  }

  @Test mutating func nonsense_isHeldAndHarmless() throws {
    for sources in [
      [(UInt64.max - 1, 5, 1)], [(1 << 20, 5, 1)], [(Self.value, 5, .max - 1)],
      [(Self.value, .max, SourceRecord.notCopied)], [(0, 4097, SourceRecord.notCopied)],
    ] as [[Source]] {
      try tell("$hello", sources: sources)
      // A range that lies outside the reply is not part of it.
      if sources[0].offset != .max - 1 { #expect(send("$hello") == nil, "\(sources)") } else { _ = send("$hello") }
    }
    try tell("$hello", sources: Self.copied, count: 255)
    #expect(send("$hello") == nil)
    try tell("$hello", sources: Self.copied, number: .max)
    #expect(send("$hello") == nil)
    for address in [Self.ring + 1, (1 << 20) - 4096, 1 << 40] as [UInt64] {
      setRing(1, address)
      #expect(registers.rings == [Self.ring], "\(address)")
    }
    setRing(99, 0x4_0000)
    #expect(registers.rings == [Self.ring, 0x4_0000], "the last ring stands for those that do not exist")
  }

  @Test mutating func manyFlowsAndRecords_areBounded() throws {
    for turn in 0..<40_000 as Range<UInt32> {
      try tell("x", at: turn, sources: [])
      if turn % 100 == 0 { _ = send("y", at: 0x8000_0000) }
    }
    try tell("$hello", at: 50_000, sources: Self.copied)
    #expect(send("$hello", at: 50_000) == 1)
  }

  @Test func registers_comeBack() throws {
    let other = PairRegisters(memory, line: try InterruptLine())
    setRing(3, 0xc_0000)
    registers.write(offset: PairRegister.controlLow, size: 4, value: 0x6008)
    registers.write(offset: PairRegister.controlHigh, size: 4, value: 0)
    var writer = StateWriter()
    registers.save(to: &writer)
    var reader = StateReader(writer.bytes)
    try other.restore(from: &reader)
    #expect(other.rings == [Self.ring, 0xc_0000])
    #expect(other.want(2) && other.active == 0)
    #expect(try memory.load(UInt32.self, at: 0x6008) == 2)
    // Anything but the tag and the length, which have checks of their own.
    for (offset, value) in [(10, 99), (18, 1), (18 + 7, 0xff), (18 + 16 * 8 + 4, 1)] as [(Int, UInt8)] {
      var bytes = writer.bytes
      bytes[offset] = value
      reader = StateReader(bytes)
      #expect(throws: StateError.self, "byte \(offset)") { try other.restore(from: &reader) }
    }
    #expect(other.rings == [Self.ring, 0xc_0000], "what was refused has changed nothing")
  }
}
