internal import CLinux
internal import GuestMemory
internal import Replication
internal import Synchronization

/// What clients were told early by the primary, as its secondary knows it; after a takeover, what the survivor does about it. A
/// connection on which the survivor's guest says something else is reset, and never goes on with other bytes. From any thread.
public final class EarlyWatch: Sendable {
  private struct State: ~Copyable {
    var ledger: EarlyLedger?
    /// After a takeover: what clients have, where something is still to be compared; and since when parts of a piece wait there.
    var clients: [FlowKey: Client] = [:]
    var waiting: [FlowKey: UInt64] = [:]
    /// Connections that are over, and where their clients are.
    var resets: [FlowKey: UInt32] = [:]
    var equal: UInt64 = 0
    var reset: UInt64 = 0
  }

  private struct Client {
    /// How far it has acknowledged.
    var end: UInt32
    /// It has said so since the primary is gone, and has nothing beyond.
    var hasNoMore: Bool
  }

  private let state = Mutex(State())
  /// Nothing is left to be looked at.
  private let isSettled = Atomic(true)
  /// The guest has yet to say some of what was told.
  private let isOwed = Atomic(false)
  /// For how long a part of a piece waits for the rest, in nanoseconds: a guest has sent it again twice by then.
  private static let patience: UInt64 = 1_000_000_000
  /// Monotonic nanoseconds.
  private let clock: @Sendable () -> UInt64

  public init() { clock = { lx_monotonic_ns() } }
  init(clock: @escaping @Sendable () -> UInt64) { self.clock = clock }

  /// Pieces that the survivor's guest has said alike, and connections that were reset.
  public var counts: (equal: UInt64, reset: UInt64) { state.withLock { ($0.equal, $0.reset) } }

  // MARK: Following

  func begin(_ channel: Channel) { state.withLock { $0.ledger = EarlyLedger(channel) } }

  /// What the primary has to hear: frames of its secondary's guest, and flows in which that contradicts what was told; and from
  /// which checkpoint that guest goes on.
  struct Report {
    var base: UInt64
    var frames: [[UInt8]] = []
    var contradictions: [FlowKey] = []
    var isEmpty: Bool { frames.isEmpty && contradictions.isEmpty }
  }

  /// - Returns: nil when that is more than a primary lets out.
  func add(_ outputs: [EarlyOutput], epoch: UInt64) -> Report? {
    state.withLock { state in
      defer { noteOwed(&state) }
      for output in outputs where state.ledger?.add(output, epoch: epoch) != true { return nil }
      return report([], &state)
    }
  }

  /// - Returns: nil when that is more than a primary asks for.
  func asked(_ output: AskedOutput, epoch: UInt64) -> Report? {
    state.withLock { state in
      guard let frames = state.ledger?.ask(output, epoch: epoch) else { return nil }
      return report(frames, &state)
    }
  }

  /// What its guest has said.
  func said(_ frame: [UInt8], isMarked: Bool) -> Report {
    state.withLock { state in
      let isSent = state.ledger?.said(frame, header: NetHeader.size, isMarked: isMarked) != false
      noteOwed(&state)
      return report(isSent ? [frame] : [], &state)
    }
  }

  /// Whether something of this flow has left early since the checkpoint from which its guest goes on.
  func wasTold(_ flow: FlowKey) -> Bool { state.withLock { $0.ledger?.wasTold(flow) == true } }

  private func report(_ frames: [[UInt8]], _ state: inout State) -> Report {
    Report(
      base: state.ledger?.checkpoint ?? 0, frames: frames, contradictions: state.ledger?.takeContradictions() ?? [])
  }

  func received(_ epoch: UInt64) {
    state.withLock { state in
      state.ledger?.received(epoch: epoch)
      noteOwed(&state)
    }
  }

  /// The guest goes on from there.
  func loaded(_ epoch: UInt64, _ search: EarlySearch) {
    state.withLock { state in
      state.ledger?.loaded(epoch: epoch, search: search)
      noteOwed(&state)
    }
  }

  private func noteOwed(_ state: inout State) {
    isOwed.store(state.ledger?.isEmpty == false, ordering: .releasing)
  }

  // MARK: Following, and after a takeover

  /// What is about to be given to the guest, as the wire numbers it. A client has read what left early and says so; this guest may
  /// have yet to say it, and would drop what acknowledges bytes that it has not sent: so the frame is made to acknowledge what it
  /// has.
  func giving(_ frame: UnsafeMutableRawBufferPointer) {
    guard isOwed.load(ordering: .acquiring), frame.count > NetHeader.size else { return }
    let parsed = unsafe Frame(UnsafeRawBufferPointer(frame), header: NetHeader.size)
    guard parsed.kind == .tcp, parsed.flags.contains(.ack), parsed.flags.isDisjoint(with: [.syn, .rst]) else { return }
    let known = state.withLock { $0.ledger?.acknowledgeable(parsed.key.reversed) }
    guard let known, Int32(bitPattern: parsed.acknowledgement &- known) > 0 else { return }
    let isPartial = unsafe NetHeader.isPartial(frame)
    unsafe UnsafeMutableRawBufferPointer(rebasing: frame[NetHeader.size...]).withMemoryRebound(to: UInt8.self) {
      var bytes = unsafe MutableSpan(_unsafeElements: $0)
      SequenceMapper.acknowledge(known, &bytes, parsed, isPartial: isPartial)
    }
  }

  // MARK: Taking over, and serving

  /// Looks at what the guest has said by now, and has it given again what it may not have taken in.
  /// - Returns: frames that reset connections, for their clients.
  func takeOver(_ log: InputLog?) -> [[UInt8]] {
    state.withLock { state in
      if let log, let acknowledged = state.ledger?.acknowledgements {
        let given = log.givenSinceCheckpoint
        let again = Repetition.input(given: given, acknowledged: acknowledged, header: NetHeader.size)
        log.add(again.map { given[$0] })
      }
      let resets = settle(&state)
      for bytes in log?.sinceCheckpoint ?? [] where bytes.count > NetHeader.size {
        note(Frame(bytes.span.extracting(NetHeader.size...)), hasNoMore: false, &state)
      }
      noteOwed(&state)
      isSettled.store(state.ledger?.isEmpty != false && state.resets.isEmpty, ordering: .releasing)
      return resets
    }
  }

  private func settle(_ state: inout State) -> [[UInt8]] {
    guard state.ledger != nil else { return [] }
    var over: [FlowKey: EarlyOutput] = [:]
    for finding in state.ledger?.settle() ?? [] {
      switch finding {
      case .equal: state.equal += 1
      case .different(let output):
        if let known = over[output.flow], Int32(bitPattern: known.end &- output.end) > 0 { continue }
        over[output.flow] = output
      }
    }
    var resets: [[UInt8]] = []
    for (flow, output) in over where state.resets[flow] == nil {
      state.resets[flow] = output.end
      state.reset += 1
      if let template = state.ledger?.template(flow) {
        resets.append(ResetFrame.of(template, header: NetHeader.size, sequence: output.end))
      }
    }
    return resets
  }

  /// What a client says that it has.
  private func note(_ frame: Frame, hasNoMore: Bool, _ state: inout State) {
    let flow = frame.key.reversed
    guard frame.flags.contains(.ack), state.ledger?.awaits(flow) == true,
      state.ledger?.canAcknowledge(frame.acknowledgement, flow) == true
    else { return }
    if let known = state.clients[flow], Int32(bitPattern: frame.acknowledgement &- known.end) < 0 { return }
    state.clients[flow] = Client(end: frame.acknowledgement, hasNoMore: hasNoMore)
  }

  /// Whether a frame that the guest has sent before is not to be repeated: its connection was reset, or it may be something else
  /// than its client was told.
  func isWithheld(_ frame: [UInt8]) -> Bool {
    guard frame.count > NetHeader.size else { return false }
    let parsed = Frame(frame.span.extracting(NetHeader.size...))
    return state.withLock { $0.resets[parsed.key] != nil || $0.ledger?.uncertain(parsed) != nil }
  }

  enum Verdict { case pass, drop, replace([UInt8]) }

  /// What the survivor's guest is about to say, numbered as on the wire. Where its client was told more than it has said, nothing leaves
  /// that is not found to be the same.
  func outgoing(_ frame: UnsafeRawBufferPointer, _ parsed: Frame) -> Verdict {
    if isSettled.load(ordering: .acquiring) || parsed.kind != .tcp { return .pass }
    return state.withLock { state in
      if state.resets[parsed.key] == nil, state.ledger?.awaits(parsed.key) == true {
        _ = state.ledger?.said(unsafe Array(frame), header: NetHeader.size, isMarked: false)
        defer {
          noteOwed(&state)
          isSettled.store(state.ledger?.isEmpty != false && state.resets.isEmpty, ordering: .releasing)
        }
        if let reset = settle(&state).first { return .replace(reset) }
        if let start = state.ledger?.uncertain(parsed) { return unsafe part(frame, parsed, ofPieceAt: start, &state) }
        if !parsed.payload.isEmpty { state.waiting[parsed.key] = nil }
      }
      guard state.resets[parsed.key] != nil else { return .pass }
      // Another connection of the same name, which its guest takes for one. To a SYN it may also answer that it has the old one still
      // (RFC 5961 §4.2): then its client resets that.
      if parsed.flags.contains(.syn) {
        state.resets[parsed.key] = nil
        return .pass
      }
      return parsed.payload.isEmpty && parsed.flags == .ack ? .pass : .drop
    }
  }

  /// What becomes of a part of a piece whose rest is not known. A client that has the rest from the primary would take both for
  /// one. So it leaves only if the client has all of it, and drops it, or has nothing of the piece; in its place the client is asked
  /// which. The guest sends it again, as if the network had lost it.
  private func part(
    _ frame: UnsafeRawBufferPointer, _ parsed: Frame, ofPieceAt start: UInt32, _ state: inout State
  ) -> Verdict {
    let flow = parsed.key
    if let client = state.clients[flow] {
      let end = parsed.sequence &+ UInt32(parsed.payload.count)
      if Int32(bitPattern: client.end &- end) >= 0 { return .pass }
      if client.hasNoMore, Int32(bitPattern: client.end &- start) <= 0 {
        state.ledger?.drop(flow, isDifferent: false)
        state.waiting[flow] = nil
        return .pass
      }
    }
    let now = clock()
    let since = state.waiting[flow] ?? now
    state.waiting[flow] = since
    if now - min(since, now) > Self.patience {
      state.ledger?.drop(flow, isDifferent: true)
      if let reset = settle(&state).first { return .replace(reset) }
    }
    return .replace(ResetFrame.probe(unsafe Array(frame), header: NetHeader.size, sequence: start))
  }

  /// What a client says: on a connection that is over it is answered by a reset, in place of the guest.
  func incoming(_ frame: UnsafeRawBufferPointer, _ parsed: Frame) -> Verdict {
    if isSettled.load(ordering: .acquiring) || parsed.kind != .tcp { return .pass }
    return state.withLock { state in
      let flow = parsed.key.reversed
      let bytes = unsafe UnsafeRawBufferPointer(rebasing: frame[NetHeader.size...])
      let hasMore = unsafe bytes.withMemoryRebound(to: UInt8.self) { parsed.hasSACK(unsafe Span(_unsafeElements: $0)) }
      note(parsed, hasNoMore: !hasMore, &state)
      guard state.resets[flow] != nil else { return .pass }
      // Anybody can have sent it: what begins another connection, the guest says.
      if !parsed.flags.isDisjoint(with: [.syn, .rst]) { return .pass }
      guard parsed.flags.contains(.ack) else { return .drop }
      return .replace(
        ResetFrame.answering(unsafe Array(frame), header: NetHeader.size, sequence: parsed.acknowledgement))
    }
  }
}
