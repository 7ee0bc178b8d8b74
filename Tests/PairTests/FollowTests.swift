import Devices
import GuestMemory
import Harness
import MiniVMM
import Replication
import StateCodec
import Testing

@testable import Pair

/// What a secondary makes of what its primary says, over a real channel.
@Suite(
  "What a secondary takes", .enabled(if: hasKVM, "needs /dev/kvm"), .timeLimit(.minutes(Environment.patience)),
  .serialized)
struct FollowTests {
  /// What is said behind a first checkpoint that was loaded. `state` is a whole machine's.
  struct Row: Sendable, CustomTestStringConvertible {
    let testDescription: String
    /// The last checkpoint that is not refused.
    let last: UInt64
    let messages: @Sendable (_ state: [UInt8]) -> [Message]
    init(_ description: String, last: UInt64 = 1, _ messages: @escaping @Sendable ([UInt8]) -> [Message]) {
      (testDescription, self.last, self.messages) = (description, last, messages)
    }
  }

  private static func checkpoint(
    epoch: UInt64 = 2, pages: UInt64 = 0, given: [UInt64] = [0], mappings: [UInt8] = [], _ state: [UInt8]
  ) -> Message { ScriptedPrimary.checkpoint(epoch, pages: pages, given: given, mappings: mappings, state: state) }

  private static func disk(
    _ index: UInt8 = 0, position: UInt64, count: UInt64 = 0, zero: UInt8 = 0, bytes: [UInt8] = []
  ) -> Message { .disk(index: index, epoch: 2, position: position, count: count, zero: zero, bytes: bytes) }

  private static let flow = FlowKey.none

  static let refused: [Row] = [
    Row("a page out of turn in one message") {
      [ScriptedPrimary.pages(2, [(5, 1), (3, 1)]), checkpoint(pages: 2, $0)]
    },
    Row("a page out of turn in the next message") {
      [ScriptedPrimary.pages(2, [(5, 1)]), ScriptedPrimary.pages(2, [(3, 1)]), checkpoint(pages: 2, $0)]
    },
    Row("a page twice") { [ScriptedPrimary.pages(2, [(5, 1), (5, 1)]), checkpoint(pages: 2, $0)] },
    Row("a page outside RAM") { [ScriptedPrimary.pages(2, [(4096, 1)]), checkpoint(pages: 1, $0)] },
    Row("a page of another form") {
      [.pages(epoch: 2, run: [1, 0, 0, 0, 0, 0, 0, 0, 9]), checkpoint(pages: 1, $0)]
    },
    Row("a page too few") { [ScriptedPrimary.pages(2, [(5, 1)]), checkpoint(pages: 2, $0)] },
    Row("a page too many") { [ScriptedPrimary.pages(2, [(5, 1), (6, 1)]), checkpoint(pages: 1, $0)] },
    Row("the checkpoint after the next") { [checkpoint(epoch: 3, $0)] },
    Row("the same checkpoint again") { [checkpoint(epoch: 1, $0)] },
    Row("checkpoint 0") { [checkpoint(epoch: 0, $0)] },
    Row("a checkpoint without a count of input") { [checkpoint(given: [], $0)] },
    Row("a checkpoint with input that never came") { [checkpoint(given: [1], $0)] },
    Row("a checkpoint with less input than the last", last: 2) { state in
      [
        .input(card: 0, number: 1, frame: [UInt8](repeating: 1, count: 60)), checkpoint(given: [1], state),
        checkpoint(epoch: 3, given: [0], state),
      ]
    },
    Row("mappings that are none") { [checkpoint(mappings: [1, 0, 0, 0, 9], $0)] },
    Row("no state") { _ in [checkpoint([])] },
    Row("a state that ends early") { [checkpoint($0.dropLast(1))] },
    Row("a state with bytes behind it") { [checkpoint($0 + [0])] },
    Row("a state of another shape") { state in
      var other = state
      // shap: tag, version, length, then the CPUs.
      other[10] ^= 2
      return [checkpoint(other)]
    },
    Row("a state with a register of a device that can't be") { state in
      // The clock's, behind its section's head: at most 0x7f.
      guard let at = state.indices.dropLast(10).last(where: { Array(state[$0..<$0 + 4]) == Array("rtc ".utf8) }) else {
        return []
      }
      var other = state
      other[at + 10] = 0xff
      return [checkpoint(other)]
    },
    Row("input out of turn") { _ in [.input(card: 0, number: 2, frame: [1])] },
    Row("a change behind the disk's end") { _ in [disk(position: 1 << 20, bytes: [1])] },
    Row("a change across the disk's end") { _ in [disk(position: (1 << 20) - 1, bytes: [1, 2])] },
    Row("zeros across the disk's end") { _ in [disk(position: 512, count: 1 << 20, zero: 1)] },
    Row("a discard without end") { _ in [disk(position: 512, count: .max)] },
    Row("a change of a disk that is not there") { _ in [disk(1, position: 0, bytes: [1])] },
    Row("another configuration") { _ in [.configuration(term: 1, description: [])] },
    Row("a secondary's message: inputAcknowledged") { _ in [.inputAcknowledged(card: 0, count: 0)] },
    Row("a secondary's message: output") { _ in [.output(card: 0, base: 1, frame: [1])] },
    Row("a secondary's message: received") { _ in [.received(epoch: 1)] },
    Row("a secondary's message: loaded") { _ in [.loaded(epoch: 1, nanoseconds: 1)] },
    Row("a secondary's message: admission") { _ in [.admission(refusal: "", term: 0)] },
    Row("a secondary's message: contradicted") { _ in [.contradicted(card: 0, base: 1, flow: flow)] },
  ]

  /// It says RECEIVED of nothing that it could not load, ends the channel, and when the primary dies as well goes on from
  /// what it has.
  @Test(arguments: refused) func isRefused_andTheLastCheckpointStands(row: Row) throws {
    let state = try ScriptedPrimary.machineState()
    let primary = try ScriptedPrimary()
    #expect(try primary.join(state: state))
    let messages = row.messages(state)
    #expect(!messages.isEmpty)
    for message in messages { try? primary.channel.sendBulk(message) }
    var received: [UInt64] = []
    while let answer = primary.next() { if case .received(let epoch) = answer { received.append(epoch) } }
    // The word for the last may be lost with the channel.
    #expect(received.allSatisfy { row.last > 1 && $0 == row.last })
    #expect(primary.die() == .tookOver)
    #expect(primary.side.loaded == row.last)
  }

  @Test func checkpointThatIsWhole_isReceivedAndLoaded() throws {
    let state = try ScriptedPrimary.machineState()
    let primary = try ScriptedPrimary()
    // The first copy, and a checkpoint of a primary that has had others before.
    try primary.channel.sendBulk(ScriptedPrimary.pages(0, [(7, 1), (5, 2), (7, 3)]))
    try primary.channel.send(.disk(index: 0, epoch: 0, position: 4096, count: 0, zero: 0, bytes: [8]))
    #expect(try primary.join(epoch: 40, state: state))
    #expect(try primary.machine.memory.load(UInt8.self, at: 7 * 4096) == 3)
    #expect(primary.diskByte(at: 4096) == 8, "made at once")
    try primary.channel.send(.disk(index: 0, epoch: 41, position: 4096, count: 0, zero: 0, bytes: [9]))
    try primary.channel.send(.input(card: 0, number: 1, frame: [UInt8](repeating: 1, count: 60)))
    #expect(primary.next() == .inputAcknowledged(card: 0, count: 1))
    #expect(primary.diskByte(at: 4096) == 8, "kept until its checkpoint is loaded")
    try primary.channel.sendBulk(ScriptedPrimary.pages(41, [(5, 4)]))
    try primary.channel.sendBulk(ScriptedPrimary.pages(41, [(6, 5)]))
    try primary.channel.sendBulk(Self.checkpoint(epoch: 41, pages: 2, given: [1], state))
    #expect(primary.loads(41))
    #expect(try (5...7).map { try primary.machine.memory.load(UInt8.self, at: $0 * 4096) } == [4, 5, 3])
    #expect(primary.diskByte(at: 4096) == 9)
    // An epoch that is not finished leaves nothing behind.
    try primary.channel.send(.disk(index: 0, epoch: 42, position: 4096, count: 0, zero: 0, bytes: [10]))
    try primary.channel.sendBulk(ScriptedPrimary.pages(42, [(5, 6)]))
    while !primary.channel.isDrained {}
    #expect(primary.die() == .tookOver)
    #expect(primary.side.loaded == 41 && primary.diskByte(at: 4096) == 9)
    #expect(try primary.machine.memory.load(UInt8.self, at: 5 * 4096) == 4)
  }

  /// The state of a guest that has seen CPU features which nobody has here.
  private static func stateOfAnotherCPU(_ state: [UInt8]) throws -> [UInt8] {
    // The vendor's name is in leaf 0: EBX, ECX, EDX, 16 bytes into an entry of 40. ECX of the next entry, leaf 1, is full then.
    let vendors = ["AuthcAMDenti", "GenuntelineI"].map { Array($0.utf8) }
    let name = try #require(state.indices.dropLast(60).first { vendors.contains(Array(state[$0..<$0 + 12])) })
    #expect(Array(state[name + 24..<name + 28]) == [1, 0, 0, 0])
    var other = state
    for at in name + 44..<name + 48 { other[at] = 0xff }
    return other
  }

  /// Before a first checkpoint there is nothing to take over.
  @Test func refusedBeforeTheFirstCheckpoint_nothingIsTakenOver() throws {
    let state = try ScriptedPrimary.machineState()
    for messages in [
      [ScriptedPrimary.checkpoint(0, state: state)],
      [Self.checkpoint(epoch: 1, [])], [Self.checkpoint(epoch: 1, try Self.stateOfAnotherCPU(state))],
      [.disk(index: 0, epoch: 0, position: 1 << 20, count: 0, zero: 0, bytes: [1])],
      [ScriptedPrimary.pages(0, [(4096, 1)])],
    ] as [[Message]] {
      let primary = try ScriptedPrimary()
      for message in messages { try primary.channel.sendBulk(message) }
      #expect(primary.next() == nil)
      guard case .gaveUp = primary.die() else { return #expect(Bool(false), "\(messages)") }
      #expect(primary.side.loaded == 0)
    }
  }
}
