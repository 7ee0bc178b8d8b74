import Replication
import Synchronization
import Testing

@Suite("Output gate") struct OutputGateTests {
  /// The host side of a gate: what left, in order, and whether it takes more.
  final class Wire: Sendable {
    let left = Mutex<[UInt8]>([])
    let room = Mutex(Int.max)
    let time = Mutex<UInt64>(0)
    /// Whether the secondary has been told of what leaves early, and of which that was asked.
    let isTold = Mutex(true)
    let asked = Mutex<[UInt64]>([])

    func gate(_ mode: ReplicationMode, frames: Int = 100, bytes: Int = 1 << 20) -> OutputGate {
      OutputGate(
        mode: mode, frameLimit: frames, byteLimit: bytes, clock: { self.time.withLock { $0 } },
        isTold: { told in
          self.asked.withLock { $0.append(told) }
          return self.isTold.withLock { $0 }
        },
        send: { frame in
          let fits = self.room.withLock { room in
            guard room > 0 else { return false }
            room -= 1
            return true
          }
          if fits { self.left.withLock { $0.append(frame[0]) } }
          return fits
        })
    }
    var sent: [UInt8] { left.withLock { $0 } }
  }

  let wire = Wire()

  private func put(
    _ gate: OutputGate, _ name: UInt8, flow: UInt64 = 1, inputGiven: UInt64 = 0, synchronisedBy: UInt64? = nil
  ) -> UInt64? {
    let result = unsafe [name, 0, 0].withUnsafeBytes {
      // Told by its name.
      unsafe gate.put(
        $0, flow: FlowKey(test: flow), inputGiven: inputGiven, early: synchronisedBy.map { ($0, UInt64(name)) })
    }
    gate.flush()
    guard case .admitted(let token) = result else { return nil }
    return token
  }

  @Test func unprotected_leavesAtOnce() {
    let gate = wire.gate(.colo)
    _ = put(gate, 1, inputGiven: 9)
    #expect(wire.sent == [1])
    #expect(gate.counters.atOnce == 1)
  }

  /// Released frames that were not transmitted are part of the checkpoint: the guest has sent them and will not send them again.
  @Test func notSureToServe_keepsItForTheCheckpoint() {
    let gate = OutputGate(mode: .remus, clock: { 0 }, mayTransmit: { false }, send: { _ in true })
    gate.protect()
    _ = put(gate, 1)
    _ = gate.cut()
    gate.received(1)
    _ = put(gate, 2)
    _ = gate.cut()
    #expect(gate.held(frames: 10, bytes: 100) == [[1, 0, 0], [2, 0, 0]])
    #expect(gate.held(frames: 1, bytes: 100) == [[2, 0, 0]])
    #expect(gate.held(frames: 10, bytes: 5) == [[2, 0, 0]])
  }

  /// Transmission may be permitted again, and `retry()` called, before the gate has recorded that it stalled.
  @Test func sureAgainWhileAFrameStalls_leaves() {
    let answers = Mutex([false])
    let gate = OutputGate(
      mode: .none, clock: { 0 }, mayTransmit: { answers.withLock { $0.popLast() ?? true } },
      send: { [wire] frame in
        wire.left.withLock { $0.append(frame[0]) }
        return true
      })
    _ = put(gate, 1)
    #expect(wire.sent == [1])
  }

  @Test func remus_leavesWithItsCheckpointAndNotBefore() {
    let gate = wire.gate(.remus)
    gate.protect()
    gate.inputAcknowledged(100)
    gate.flush()
    let first = put(gate, 1)
    #expect(gate.cut() == 1)
    _ = put(gate, 2)
    gate.compared([first ?? 0], .equal)
    gate.flush()
    #expect(wire.sent == [])
    gate.received(1)
    #expect(wire.sent == [1], "what came after the cut belongs to the next epoch")
    #expect(gate.cut() == 2)
    gate.received(2)
    #expect(wire.sent == [1, 2])
    #expect(gate.counters.checkpointed == 2)
  }

  @Test func held_isTheNewestOfEndedEpochsThatHasNotLeft() {
    let gate = wire.gate(.remus)
    gate.protect()
    _ = put(gate, 1)
    _ = gate.cut()
    gate.received(1)
    for name in 2...4 { _ = put(gate, UInt8(name)) }
    _ = gate.cut()
    _ = put(gate, 5)
    #expect(gate.held(frames: 10, bytes: 100).map(\.[0]) == [2, 3, 4])
    #expect(gate.held(frames: 2, bytes: 100).map(\.[0]) == [3, 4])
    #expect(gate.held(frames: 10, bytes: 7).map(\.[0]) == [3, 4], "3 bytes each")
  }

  @Test func colo_equalOutputLeaves_inTheOrderOfItsFlow() throws {
    let gate = wire.gate(.colo)
    gate.protect()
    let a = try #require(put(gate, 1, flow: 7))
    let b = try #require(put(gate, 2, flow: 7))
    let c = try #require(put(gate, 3, flow: 8))
    gate.compared([b], .equal)
    gate.flush()
    #expect(wire.sent == [], "an earlier frame of its flow waits")
    gate.compared([c], .equal)
    gate.flush()
    #expect(wire.sent == [3], "another flow does not")
    gate.compared([a], .equal)
    gate.flush()
    #expect(wire.sent == [3, 1, 2])
    #expect(gate.counters.equal == 3)
  }

  @Test func colo_differentOutput_waitsForTheCheckpointAndStopsItsFlow() throws {
    let gate = wire.gate(.colo)
    gate.protect()
    let a = try #require(put(gate, 1))
    let b = try #require(put(gate, 2))
    gate.compared([a], .different)
    gate.flush()
    gate.compared([b], .equal)
    gate.flush()
    #expect(wire.sent == [])
    gate.received(gate.cut())
    #expect(wire.sent == [1, 2])
  }

  /// The client must not learn of input (an ACK) that only the primary has.
  @Test func inputRule_holdsEvenEqualAndCheckpointedOutput() throws {
    let gate = wire.gate(.colo)
    gate.protect()
    let token = try #require(put(gate, 1, inputGiven: 5))
    gate.compared([token], .equal)
    gate.flush()
    gate.inputAcknowledged(4)
    gate.flush()
    #expect(wire.sent == [])
    gate.inputAcknowledged(5)
    gate.flush()
    #expect(wire.sent == [1])
  }

  @Test func full_refusesAndLosesNothing() {
    let gate = wire.gate(.remus, frames: 3)
    gate.protect()
    #expect(put(gate, 1) != nil && put(gate, 2) != nil && put(gate, 3) != nil)
    #expect(put(gate, 4) == nil)
    #expect(gate.counters.refused == 1)
    gate.received(gate.cut())
    #expect(put(gate, 4) != nil)
    gate.received(gate.cut())
    #expect(wire.sent == [1, 2, 3, 4])
    #expect(gate.waiting.bytes == 0)
  }

  @Test func byteLimit_isKept() {
    let gate = wire.gate(.remus, bytes: 7)
    gate.protect()
    #expect(put(gate, 1) != nil && put(gate, 2) != nil)
    #expect(put(gate, 3) == nil)
  }

  @Test func hostSideFull_keepsOrderAndGoesOn() {
    let gate = wire.gate(.none)
    wire.room.withLock { $0 = 1 }
    for name in 1...3 as ClosedRange<UInt8> { _ = put(gate, name) }
    #expect(wire.sent == [1])
    wire.room.withLock { $0 = 100 }
    gate.retry()
    #expect(wire.sent == [1, 2, 3])
  }

  @Test func secondaryLost_everythingLeaves() {
    let gate = wire.gate(.colo)
    gate.protect()
    for name in 1...3 as ClosedRange<UInt8> { _ = put(gate, name, inputGiven: 50) }
    #expect(wire.sent == [])
    gate.unprotect()
    #expect(wire.sent == [1, 2, 3])
  }

  @Test func fenced_nothingLeavesEverAgain() {
    let gate = wire.gate(.colo)
    gate.protect()
    _ = put(gate, 1)
    gate.fence()
    gate.unprotect()
    _ = put(gate, 2)
    gate.received(99)
    #expect(wire.sent == [])
  }

  @Test func heldTime_isCounted() {
    let gate = wire.gate(.remus)
    gate.protect()
    _ = put(gate, 1)
    wire.time.withLock { $0 = 40 }
    _ = put(gate, 2)
    wire.time.withLock { $0 = 100 }
    #expect(gate.waiting.oldest == 100)
    gate.received(gate.cut())
    #expect(gate.counters.waitedTime == 160)
    #expect(gate.times.count == 2 && gate.times.quantile(0.5) == 60 && gate.times.max == 100)
  }

  // MARK: Early

  @Test func early_leavesWithTheInputItStemsFrom_afterTheSecondaryWasTold() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    _ = put(gate, 1, inputGiven: 3, synchronisedBy: 0)
    _ = put(gate, 2, flow: 2, inputGiven: 3)
    #expect(wire.sent == [])
    gate.inputAcknowledged(3)
    gate.flush()
    #expect(wire.sent == [1], "the second is not marked")
    #expect(wire.asked.withLock { $0 } == [1])
    #expect(gate.counters.early == 1)
  }

  @Test func early_doesNotOvertakeInItsFlow() throws {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    let stored = try #require(put(gate, 1))
    _ = put(gate, 2, synchronisedBy: 0)
    _ = put(gate, 3, flow: 2, synchronisedBy: 0)
    #expect(wire.sent == [3], "2 comes after what confirms a write")
    gate.compared([stored], .equal)
    gate.flush()
    #expect(wire.sent == [3, 1, 2])
  }

  /// A message to the secondary for each would cost more than the frames do.
  @Test func whatMayLeaveByNow_leavesAtTheNextFlush_toldOfAtOnce() throws {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    for name in 1...3 as ClosedRange<UInt8> {
      _ = put(gate, name, flow: UInt64(name), inputGiven: 3, synchronisedBy: 0)
    }
    let stored = try #require(put(gate, 4, flow: 4, inputGiven: 3))
    gate.inputAcknowledged(3)
    gate.compared([stored], .equal)
    #expect(wire.sent == [])
    gate.flush()
    #expect(wire.sent == [1, 2, 3, 4])
    #expect(wire.asked.withLock { $0 } == [3])
  }

  @Test func contradicted_whatWasLetOutBefore_leaves() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    _ = put(gate, 1, inputGiven: 1, synchronisedBy: 0)
    gate.inputAcknowledged(1)
    gate.contradict(FlowKey(test: 1), in: 1)
    #expect(wire.sent == [1])
    _ = put(gate, 2, inputGiven: 1, synchronisedBy: 0)
    #expect(wire.sent == [1])
  }

  /// Its sources changed in checkpoint 1: before that is received, a survivor would go on without them.
  @Test func early_waitsForTheCheckpointOfItsSources() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    #expect(gate.cut() == 1)
    _ = put(gate, 1, synchronisedBy: 1)
    #expect(wire.sent == [])
    gate.received(1)
    #expect(wire.sent == [1])
  }

  @Test func early_whatItAwaited_isCounted() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    _ = put(gate, 1, inputGiven: 1, synchronisedBy: 0)
    gate.inputAcknowledged(1)
    gate.flush()
    _ = put(gate, 2, flow: 2)
    _ = put(gate, 3, flow: 2, synchronisedBy: 0)
    gate.contradict(FlowKey(test: 1), in: 1)
    _ = put(gate, 4, flow: 1, synchronisedBy: 0)
    _ = gate.cut()
    _ = put(gate, 5, flow: 3, synchronisedBy: 1)
    let awaited = gate.counters.awaited
    #expect(awaited.input == 1 && awaited.earlier == 1 && awaited.distrusted == 1 && awaited.checkpoint == 1)
  }

  @Test func early_isNotSeenBeforeItIsTold() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    wire.isTold.withLock { $0 = false }
    _ = put(gate, 1, synchronisedBy: 0)
    gate.retry()
    #expect(wire.sent == [])
    wire.isTold.withLock { $0 = true }
    gate.retry()
    #expect(wire.sent == [1])
  }

  @Test func overdue_areFrameThatWait_eachOnce() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    _ = put(gate, 1)
    _ = gate.cut()
    _ = put(gate, 2, inputGiven: 5, synchronisedBy: 0)
    _ = put(gate, 3, flow: 2)
    wire.time.withLock { $0 = 100 }
    _ = put(gate, 4, flow: 3)
    #expect(gate.overdue(after: 50, limit: 9).map(\.first) == [3], "1 is of an epoch that has ended, 2 needs no asking")
    #expect(gate.overdue(after: 50, limit: 9) == [])
    wire.time.withLock { $0 = 151 }
    #expect(gate.overdue(after: 50, limit: 9).map(\.first) == [4])
  }

  @Test func contradicted_isCounted_andNothingOfThatFlowIsEarlyBeforeTheCheckpointThatHealsIt() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    _ = put(gate, 1, synchronisedBy: 0)
    gate.contradict(FlowKey(test: 2), in: 1)
    gate.contradict(FlowKey(test: 1), in: 1)
    gate.contradict(FlowKey(test: 1), in: 1)
    #expect(gate.counters.contradicted == 1, "of flow 2 nothing was early, and flow 1 counts once")
    _ = put(gate, 2, synchronisedBy: 0)
    #expect(wire.sent == [1])
    let epoch = gate.cut()
    _ = put(gate, 3, flow: 1, synchronisedBy: 0)
    _ = put(gate, 4, flow: 2, synchronisedBy: 0)
    #expect(wire.sent == [1, 4], "it may never get there: then a survivor goes on from what contradicted")
    gate.received(epoch)
    #expect(wire.sent == [1, 4, 2, 3])
    _ = put(gate, 5, synchronisedBy: 0)
    #expect(wire.sent == [1, 4, 2, 3, 5])
  }

  /// The secondary's word may cross the next cut.
  @Test func contradictedLate_isDistrustedUntilTheCheckpointIsReceived() {
    let gate = wire.gate(.coloPlusPlus)
    gate.protect()
    _ = put(gate, 1, synchronisedBy: 0)
    let epoch = gate.cut()
    gate.contradict(FlowKey(test: 1), in: epoch)
    _ = put(gate, 2, synchronisedBy: 0)
    #expect(wire.sent == [1])
    gate.received(epoch)
    #expect(wire.sent == [1, 2])
    gate.contradict(FlowKey(test: 1), in: epoch)
    _ = put(gate, 3, synchronisedBy: 0)
    #expect(wire.sent == [1, 2, 3])
    #expect(gate.counters.contradicted == 1 && gate.counters.contradictedBefore == 1)
  }
}

extension FlowKey {
  init(test number: UInt64) {
    self = .none
    source.low = number
  }
}
