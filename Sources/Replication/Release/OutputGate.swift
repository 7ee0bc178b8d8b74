internal import Synchronization

/// Why a checkpoint is taken.
public enum CheckpointCause: String, Sendable, CaseIterable {
  case first, period, mismatch, queueFull, silence, demand
}

/// What the primary's guest has sent and clients may not see yet. From any thread; frames leave in their flow's order.
///
/// Frames lie in a ring in the order of their tokens, each linked to the next of its flow. What becomes known of the
/// secondary concerns the oldest frames or certain ones, so that no call walks over all that wait.
///
/// Whoever learns that frames may leave sends them, without the lock under which that is decided; who comes while somebody
/// sends leaves its own to them.
public final class OutputGate: Sendable {
  static let none = UInt64.max
  private static let spareFrames = 256

  public let mode: ReplicationMode
  /// Frames and bytes that may wait.
  public let frameLimit: Int
  public let byteLimit: Int
  private let clock: @Sendable () -> UInt64
  private let send: @Sendable ([UInt8]) -> Bool
  private let isTold: @Sendable (UInt64) -> Bool
  private let mayTransmit: @Sendable () -> Bool
  private let state: Mutex<State>
  /// Held by whoever sends.
  private let wire = Mutex(Outgoing())
  /// Frames that may leave and have not been sent, and their bytes.
  private let unsentFrames = Atomic(0)
  private let unsentBytes = Atomic(0)
  /// The host side had no room.
  private let isStalled = Atomic(false)
  private let isFenced = Atomic(false)

  /// - Parameters:
  ///   - clock: monotonic nanoseconds.
  ///   - isTold: whether the secondary is sure to hear of a frame that leaves early, by what ``put(_:flow:inputGiven:early:)`` was
  ///     given as `told`.
  ///   - mayTransmit: whether this side is sure that no other serves the clients; asked before each frame. What waits for that goes
  ///     with ``retry()``.
  ///   - send: lets a frame out; false when the host side is full for now. Called by one thread at a time.
  public init(
    mode: ReplicationMode, frameLimit: Int = 4096, byteLimit: Int = 64 << 20,
    clock: @escaping @Sendable () -> UInt64, isTold: @escaping @Sendable (UInt64) -> Bool = { _ in true },
    mayTransmit: @escaping @Sendable () -> Bool = { true },
    send: @escaping @Sendable ([UInt8]) -> Bool
  ) {
    self.mode = mode
    self.frameLimit = frameLimit
    self.byteLimit = byteLimit
    self.clock = clock
    self.isTold = isTold
    self.mayTransmit = mayTransmit
    self.send = send
    // Twice the limit: places in the middle become free before the oldest does.
    var places = 2
    while places < 2 * frameLimit { places *= 2 }
    state = Mutex(State(ring: [Held](repeating: Held(), count: places)))
  }

  /// Whether a frame of so many bytes would be admitted now, by the one thread that puts frames.
  public func hasRoom(for bytes: Int) -> Bool {
    state.withLock { state in
      retire(&state)
      return isFenced.load(ordering: .relaxed) || hasRoom(bytes, state)
    }
  }

  private func hasRoom(_ bytes: Int, _ state: borrowing State) -> Bool {
    state.heldFrames + unsentFrames.load(ordering: .relaxed) < frameLimit
      && state.heldBytes + unsentBytes.load(ordering: .relaxed) + bytes <= byteLimit
      && state.next - state.oldest < UInt64(state.ring.count)
  }

  /// A frame of the guest's, with its virtio-net header, sent after `inputGiven` frames of input.
  /// - Parameter early: of one that the secondary was told of: ``OutputFacts/synchronisedBy``, and how to ask whether it knows.
  public func put(
    _ bytes: UnsafeRawBufferPointer, flow: FlowKey, inputGiven: UInt64,
    early: (synchronisedBy: UInt64, told: UInt64)? = nil
  ) -> Admission {
    var sends = false
    let admission: Admission = state.withLock { state in
      guard !isFenced.load(ordering: .relaxed) else { return .admitted(token: state.next) }
      guard hasRoom(bytes.count, state) else {
        state.counters.refused += 1
        return .full
      }
      let token = state.next
      state.next += 1
      state[token].facts = OutputFacts(
        epoch: state.epoch, inputGiven: inputGiven, synchronisedBy: early?.synchronisedBy)
      state[token].told = early?.told ?? 0
      state[token].flow = flow
      state[token].next = Self.none
      state[token].since = clock()
      state[token].isHeld = true
      var memory = state.spare.popLast() ?? []
      unsafe memory.append(contentsOf: bytes)
      state[token].bytes = memory
      state.heldFrames += 1
      state.heldBytes += bytes.count
      if let known = state.flows[flow] {
        state[known.last].next = token
        state.flows[flow]?.last = token
      } else {
        state.flows[flow] = Flow(first: token, last: token)
      }
      sends = !state.isProtected || mode == .none
      if sends || early != nil { release(flow: flow, &state) }
      if early != nil, state[token].isHeld { noteAwaited(token, &state) }
      return .admitted(token: token)
    }
    // What is early has to be told: with its like, at the next ``flush()``.
    if sends { sendLeaving() }
    return admission
  }

  /// Sends what may leave by now: after the last of several ``put(_:flow:inputGiven:early:)``, ``inputAcknowledged(_:)`` and
  /// ``compared(_:_:)``. What leaves early is told of before, with one message for all.
  public func flush() { sendLeaving() }

  /// Output is held from here on: a secondary is there, which has no input yet.
  public func protect() {
    state.withLock { state in
      state.isProtected = true
      // Its numbering is a new one; what an earlier secondary acknowledged says nothing of it.
      state.secondary.inputAcknowledged = 0
    }
  }

  /// The secondary has gone: everything may leave.
  public func unprotect() {
    state.withLock { state in
      state.isProtected = false
      for token in state.oldest..<state.next { release(token, &state) }
      retire(&state)
    }
    isStalled.store(false, ordering: .relaxed)
    sendLeaving()
  }

  /// Another serves the clients: what is held is thrown away, and once this returns nothing leaves any more.
  public func fence() {
    isFenced.store(true, ordering: .sequentiallyConsistent)
    state.withLock { state in
      state.ring = [Held](repeating: Held(), count: 2)
      state.flows = [:]
      state.leaving = []
      state.oldest = state.next
      (state.heldFrames, state.heldBytes) = (0, 0)
    }
    // Whoever sends is at its last frame.
    wire.withLock { $0 = Outgoing() }
  }

  /// Ends the epoch; returns it. The guest stands still.
  public func cut() -> UInt64 {
    state.withLock { state in
      defer { state.epoch += 1 }
      // Another is cut when this one is received: two epochs at the most are of interest.
      swap(&state.earlyFlows, &state.earlyBefore)
      state.earlyFlows.removeAll(keepingCapacity: true)
      return state.epoch
    }
  }

  /// What clients do not have yet of the epochs that have ended: its newest frames, so many at the most. A survivor repeats
  /// them, because its guest takes them for sent.
  public func held(frames: Int, bytes: Int) -> [[UInt8]] {
    flush()
    return wire.withLock { outgoing in
      state.withLock { state in
        var held: [[UInt8]] = []
        var size = 0
        func take(_ frame: [UInt8]) -> Bool {
          size += frame.count
          guard held.count < frames, size <= bytes else { return false }
          held.append(frame)
          return true
        }
        for token in (state.oldest..<state.next).reversed()
        where state[token].isHeld && state[token].facts.epoch < state.epoch {
          if !take(state[token].bytes) { return held.reversed() }
        }
        // Released frames that were not transmitted: the tap was full, or this primary may not transmit.
        for frame in state.leaving.reversed() + outgoing.frames[outgoing.first...].reversed()
        where !take(frame.bytes) { break }
        return held.reversed()
      }
    }
  }

  /// The epoch that has not ended.
  public var epoch: UInt64 { state.withLock { $0.epoch } }

  /// The secondary holds checkpoint `epoch`.
  public func received(_ epoch: UInt64) {
    state.withLock { state in
      state.secondary.received = max(state.secondary.received, epoch)
      if !state.distrusted.isEmpty { state.distrusted = state.distrusted.filter { $0.value > epoch } }
      var token = state.oldest
      while token < state.next, state[token].facts.epoch <= epoch {
        release(token, &state)
        token += 1
      }
      while mode == .coloPlusPlus, token < state.next {
        if let first = state[token].facts.synchronisedBy, first <= epoch { release(token, &state) }
        token += 1
      }
      retire(&state)
    }
    sendLeaving()
  }

  /// The secondary's guest has said something else in this flow in `epoch`: what left of it early was wrong, and no more does until
  /// the secondary holds the checkpoint that ends the epoch. What was let out before leaves at once.
  public func contradict(_ flow: FlowKey, in epoch: UInt64) {
    flush()
    state.withLock { state in
      guard epoch > state.secondary.received else {
        state.counters.contradictedBefore += 1
        return
      }
      let flows = epoch == state.epoch ? state.earlyFlows : state.earlyBefore
      guard flows.contains(flow), state.distrusted[flow].map({ $0 < epoch }) != false else { return }
      state.distrusted[flow] = epoch
      state.counters.contradicted += 1
    }
  }

  /// Whether something of a flow has left early in this epoch.
  public func hasSentEarly(of flow: FlowKey) -> Bool { state.withLock { $0.earlyFlows.contains(flow) } }

  /// Frames of this epoch that have waited longer than they should, but for those that are to leave early; each once.
  public func overdue(after time: UInt64, limit: Int) -> [[UInt8]] {
    state.withLock { state in
      var frames: [[UInt8]] = []
      let now = clock()
      state.asked = max(state.asked, state.oldest)
      while state.asked < state.next, frames.count < limit, now - min(state[state.asked].since, now) > time {
        let facts = state[state.asked].facts
        if state[state.asked].isHeld, facts.epoch == state.epoch, facts.synchronisedBy == nil {
          frames.append(state[state.asked].bytes)
        }
        state.asked += 1
      }
      return frames
    }
  }

  /// The secondary has the first `count` frames of input. What may leave now does at the next ``flush()``.
  public func inputAcknowledged(_ count: UInt64) {
    state.withLock { state in
      guard count > state.secondary.inputAcknowledged else { return }
      state.secondary.inputAcknowledged = count
      var token = max(state.looked, state.oldest)
      while token < state.next, state[token].facts.inputGiven <= count {
        release(token, &state)
        token += 1
      }
      state.looked = token
      retire(&state)
    }
  }

  /// The comparison of frames has ended. Those that may leave now do at the next ``flush()``.
  public func compared(_ tokens: some Sequence<UInt64>, _ result: OutputFacts.Comparison) {
    state.withLock { state in
      for token in tokens where token >= state.oldest && token < state.next && state[token].isHeld {
        state[token].facts.comparison = result
        release(token, &state)
      }
      retire(&state)
    }
  }

  /// Tries again what the host side had no room for.
  public func retry() {
    guard isStalled.load(ordering: .relaxed) else { return }
    isStalled.store(false, ordering: .relaxed)
    sendLeaving()
  }

  public var counters: Counters { state.withLock { $0.counters } }
  /// How long frames were held that have been let out, in nanoseconds.
  public var times: Histogram { state.withLock { $0.times } }
  /// Frames waiting, and how long the oldest has, in nanoseconds.
  public var waiting: (frames: Int, bytes: Int, oldest: UInt64) {
    state.withLock { state in
      retire(&state)
      let oldest = state.oldest < state.next ? clock() - min(state[state.oldest].since, clock()) : 0
      return (
        state.heldFrames + unsentFrames.load(ordering: .relaxed),
        state.heldBytes + unsentBytes.load(ordering: .relaxed),
        oldest
      )
    }
  }

  /// A frame of which more is known now: it and those behind it leave if they may.
  private func release(_ token: UInt64, _ state: inout State) {
    guard state[token].isHeld, state.flows[state[token].flow]?.first == token else { return }
    release(flow: state[token].flow, &state)
  }

  /// Has the first frames of a flow leave, up to one that may not yet.
  private func release(flow: FlowKey, _ state: inout State) {
    guard var known = state.flows[flow] else { return }
    let mode = state.isProtected ? mode : .none
    let now = clock()
    while true {
      let token = known.first
      let facts = state[token].facts
      let isDistrusted = !state.distrusted.isEmpty && state.distrusted[flow] != nil
      let verdict = ReleasePolicy.verdict(
        facts, mode: mode, secondary: state.secondary, isDistrusted: isDistrusted)
      guard verdict == .release || verdict == .releaseEarly else { break }
      count(facts, verdict, heldFor: now - min(state[token].since, now), mode, &state)
      state[token].isHeld = false
      if verdict == .releaseEarly { state.earlyFlows.insert(flow) }
      state.heldFrames -= 1
      state.heldBytes -= state[token].bytes.count
      unsentFrames.wrappingAdd(1, ordering: .relaxed)
      unsentBytes.wrappingAdd(state[token].bytes.count, ordering: .relaxed)
      state.leaving.append(Leaving(bytes: state[token].bytes, told: verdict == .releaseEarly ? state[token].told : 0))
      state[token].bytes = []
      known.first = state[token].next
      if known.first == Self.none {
        state.flows[flow] = nil
        break
      }
    }
    if known.first != Self.none { state.flows[flow] = known }
    if state.oldest + 1 == state.next { retire(&state) }
  }

  /// Sends what may leave, unless somebody else is at it, who then sends this as well.
  private func sendLeaving() {
    while unsentFrames.load(ordering: .acquiring) > 0, !isStalled.load(ordering: .relaxed),
      !isFenced.load(ordering: .relaxed)
    {
      guard wire.withLockIfAvailable({ sendAll(&$0) }) != nil else { return }
    }
  }

  private func sendAll(_ outgoing: inout Outgoing) {
    if outgoing.first == outgoing.frames.count {
      state.withLock { state in
        for index in outgoing.frames.indices where state.spare.count < Self.spareFrames {
          var memory: [UInt8] = []
          swap(&memory, &outgoing.frames[index].bytes)
          // Large ones give their memory back.
          guard memory.capacity <= 4096 else { continue }
          memory.removeAll(keepingCapacity: true)
          state.spare.append(memory)
        }
        outgoing.frames.removeAll(keepingCapacity: true)
        swap(&outgoing.frames, &state.leaving)
      }
      outgoing.first = 0
      outgoing.told = outgoing.frames.map(\.told).max() ?? 0
    }
    guard mayTransmit() else { return stall() }
    // Before any of them is seen: who takes over must know what clients were told.
    if outgoing.told > 0 {
      guard isTold(outgoing.told) else { return isStalled.store(true, ordering: .relaxed) }
      outgoing.told = 0
    }
    while outgoing.first < outgoing.frames.count, !isFenced.load(ordering: .sequentiallyConsistent) {
      guard mayTransmit() else { return stall() }
      guard send(outgoing.frames[outgoing.first].bytes) else { return isStalled.store(true, ordering: .relaxed) }
      unsentFrames.wrappingSubtract(1, ordering: .relaxed)
      unsentBytes.wrappingSubtract(outgoing.frames[outgoing.first].bytes.count, ordering: .relaxed)
      outgoing.first += 1
    }
  }

  /// Stops sending until ``retry()``. A thread may have permitted transmission and called ``retry()`` before the flag was set, so
  /// the permission is read again.
  private func stall() {
    isStalled.store(true, ordering: .sequentiallyConsistent)
    if mayTransmit() { isStalled.store(false, ordering: .relaxed) }
  }

  /// Gives back the places of the oldest frames that have left.
  private func retire(_ state: inout State) {
    while state.oldest < state.next, !state[state.oldest].isHeld { state.oldest += 1 }
  }

  private func noteAwaited(_ token: UInt64, _ state: inout State) {
    let facts = state[token].facts
    if facts.inputGiven > state.secondary.inputAcknowledged {
      state.counters.awaited.input += 1
    } else if state.flows[state[token].flow]?.first != token {
      state.counters.awaited.earlier += 1
    } else if facts.synchronisedBy ?? 0 > state.secondary.received {
      state.counters.awaited.checkpoint += 1
    } else {
      state.counters.awaited.distrusted += 1
    }
  }

  private func count(
    _ facts: OutputFacts, _ verdict: ReleasePolicy.Verdict, heldFor time: UInt64, _ mode: ReplicationMode,
    _ state: inout State
  ) {
    if mode == .none {
      state.counters.atOnce += 1
      return
    }
    state.times.record(time)
    if verdict == .releaseEarly {
      state.counters.early += 1
    } else if facts.epoch <= state.secondary.received {
      state.counters.checkpointed += 1
    } else {
      state.counters.equal += 1
    }
    if verdict != .releaseEarly { state.counters.waitedTime += time }
  }
}
