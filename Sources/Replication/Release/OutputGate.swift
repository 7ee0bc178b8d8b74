internal import Synchronization

/// Why a checkpoint is taken.
public enum CheckpointCause: String, Sendable, CaseIterable {
  case first, period, mismatch, queueFull, silence, demand
}

/// What the primary's guest has sent and clients may not see yet. From any thread; frames leave in their flow's order.
public final class OutputGate: Sendable {
  /// A frame in the gate.
  private struct Held {
    var facts: OutputFacts
    var token: UInt64
    /// Frames of one flow keep their order.
    var flow: UInt64
    var since: UInt64
    var bytes: [UInt8]
  }

  private struct State {
    var epoch: UInt64 = 1
    var secondary = SecondaryProgress()
    var isProtected = false
    var isFenced = false
    var held: [Held] = []
    var heldBytes = 0
    var spare: [[UInt8]] = []
    var nextToken: UInt64 = 0
    var blocked: Set<UInt64> = []
    var counters = Counters()
  }

  /// What has gone through the gate so far.
  public struct Counters: Equatable, Sendable {
    /// Frames that left at once, after equal output, and after a checkpoint.
    public var atOnce: UInt64 = 0
    public var equal: UInt64 = 0
    public var checkpointed: UInt64 = 0
    /// Nanoseconds that released frames were held: sum and longest.
    public var heldTime: UInt64 = 0
    public var longestHeld: UInt64 = 0
    /// Frames refused because the gate was full; their guest sends them again later.
    public var refused: UInt64 = 0
  }

  public let mode: ReplicationMode
  /// Frames and bytes that may wait.
  public let frameLimit: Int
  public let byteLimit: Int
  private let clock: @Sendable () -> UInt64
  private let send: @Sendable ([UInt8]) -> Bool
  private let state: Mutex<State>

  /// - Parameters:
  ///   - clock: monotonic nanoseconds.
  ///   - send: lets a frame out; false when the host side is full for now. Called with the gate's lock held.
  public init(
    mode: ReplicationMode, frameLimit: Int = 4096, byteLimit: Int = 64 << 20,
    clock: @escaping @Sendable () -> UInt64, send: @escaping @Sendable ([UInt8]) -> Bool
  ) {
    self.mode = mode
    self.frameLimit = frameLimit
    self.byteLimit = byteLimit
    self.clock = clock
    self.send = send
    state = Mutex(State())
  }

  public enum Admission: Equatable, Sendable {
    /// It has left, or will; what to call it when it is compared.
    case admitted(token: UInt64)
    /// No room: the caller keeps the frame and asks for a checkpoint.
    case full
  }

  /// A frame of the guest's, with its virtio-net header, sent after `inputGiven` frames of input.
  public func put(_ bytes: UnsafeRawBufferPointer, flow: UInt64, inputGiven: UInt64) -> Admission {
    state.withLock { state in
      guard state.held.count < frameLimit, state.heldBytes + bytes.count <= byteLimit else {
        state.counters.refused += 1
        return .full
      }
      let token = state.nextToken
      state.nextToken += 1
      var copy = state.spare.popLast() ?? []
      copy.removeAll(keepingCapacity: true)
      unsafe copy.append(contentsOf: bytes)
      state.heldBytes += bytes.count
      state.held.append(
        Held(
          facts: OutputFacts(epoch: state.epoch, inputGiven: inputGiven), token: token, flow: flow, since: clock(),
          bytes: copy))
      if !state.isProtected { release(&state) }
      return .admitted(token: token)
    }
  }

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
      release(&state)
    }
  }

  /// Another serves the clients: what is held is thrown away, and nothing leaves any more.
  public func fence() {
    state.withLock { state in
      state.isFenced = true
      state.held = []
      state.heldBytes = 0
    }
  }

  /// Ends the epoch; returns it. The guest stands still.
  public func cut() -> UInt64 {
    state.withLock { state in
      defer { state.epoch += 1 }
      return state.epoch
    }
  }

  /// The secondary holds checkpoint `epoch`.
  public func received(_ epoch: UInt64) {
    state.withLock { state in
      state.secondary.received = max(state.secondary.received, epoch)
      release(&state)
    }
  }

  /// The secondary has the first `count` frames of input.
  public func inputAcknowledged(_ count: UInt64) {
    state.withLock { state in
      state.secondary.inputAcknowledged = max(state.secondary.inputAcknowledged, count)
      release(&state)
    }
  }

  /// The comparison of frames has ended.
  public func compared(_ tokens: some Sequence<UInt64>, _ result: OutputFacts.Comparison) {
    state.withLock { state in
      for token in tokens {
        // Tokens ascend along the queue.
        var low = 0
        var high = state.held.count
        while low < high {
          let middle = (low + high) / 2
          if state.held[middle].token < token { low = middle + 1 } else { high = middle }
        }
        if low < state.held.count, state.held[low].token == token { state.held[low].facts.comparison = result }
      }
      release(&state)
    }
  }

  /// Tries again what the host side had no room for.
  public func retry() { state.withLock { release(&$0) } }

  public var counters: Counters { state.withLock { $0.counters } }
  /// Frames waiting, and how long the oldest has, in nanoseconds.
  public var waiting: (frames: Int, bytes: Int, oldest: UInt64) {
    state.withLock { state in
      (state.held.count, state.heldBytes, state.held.first.map { clock() - min($0.since, clock()) } ?? 0)
    }
  }

  private func release(_ state: inout State) {
    guard !state.isFenced, !state.held.isEmpty else { return }
    let mode = state.isProtected ? mode : .none
    let now = clock()
    state.blocked.removeAll(keepingCapacity: true)
    var kept = 0
    var full = false
    for index in state.held.indices {
      let facts = state.held[index].facts
      let flow = state.held[index].flow
      if !full, !state.blocked.contains(flow),
        ReleasePolicy.verdict(facts, mode: mode, secondary: state.secondary) == .release
      {
        if send(state.held[index].bytes) {
          left(facts, heldFor: now - min(state.held[index].since, now), mode, &state)
          state.heldBytes -= state.held[index].bytes.count
          if state.spare.count < 64 {
            var bytes: [UInt8] = []
            swap(&bytes, &state.held[index].bytes)
            state.spare.append(bytes)
          }
          continue
        }
        full = true
      }
      state.blocked.insert(flow)
      if kept != index { state.held.swapAt(kept, index) }
      kept += 1
    }
    state.held.removeLast(state.held.count - kept)
  }

  private func left(_ facts: OutputFacts, heldFor time: UInt64, _ mode: ReplicationMode, _ state: inout State) {
    if mode == .none {
      state.counters.atOnce += 1
    } else if facts.epoch <= state.secondary.received {
      state.counters.checkpointed += 1
    } else {
      state.counters.equal += 1
    }
    state.counters.heldTime += time
    state.counters.longestHeld = max(state.counters.longestHeld, time)
  }
}
