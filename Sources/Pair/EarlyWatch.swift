internal import GuestMemory
internal import Replication
internal import Synchronization

/// What clients were told early by the primary, as its secondary knows it; after a takeover, what the survivor does about it. A
/// connection on which the survivor's guest says something else is reset, and never goes on with other bytes. From any thread.
public final class EarlyWatch: Sendable {
  private struct State: ~Copyable {
    var ledger: EarlyLedger?
    /// Connections that are over, and where their clients are.
    var resets: [FlowKey: UInt32] = [:]
    var equal: UInt64 = 0
    var reset: UInt64 = 0
  }

  private let state = Mutex(State())
  /// Nothing is left to be looked at.
  private let isSettled = Atomic(true)
  /// The guest has yet to say some of what was told.
  private let isOwed = Atomic(false)

  public init() {}

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

  func loaded(_ epoch: UInt64) {
    state.withLock { state in
      state.ledger?.loaded(epoch: epoch)
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

  /// Whether a connection was reset: nothing of it is repeated.
  func isOver(_ frame: [UInt8]) -> Bool {
    guard frame.count > NetHeader.size else { return false }
    let key = Frame(frame.span.extracting(NetHeader.size...)).key
    return state.withLock { $0.resets[key] != nil }
  }

  enum Verdict { case pass, drop, replace([UInt8]) }

  /// What the survivor's guest is about to say, numbered as on the wire.
  func outgoing(_ frame: UnsafeRawBufferPointer, _ parsed: Frame) -> Verdict {
    if isSettled.load(ordering: .acquiring) || parsed.kind != .tcp { return .pass }
    return state.withLock { state in
      if state.resets[parsed.key] == nil, state.ledger?.awaits(parsed.key) == true {
        _ = state.ledger?.said(unsafe Array(frame), header: NetHeader.size, isMarked: false)
        defer { noteOwed(&state) }
        if let reset = settle(&state).first { return .replace(reset) }
        isSettled.store(state.ledger?.isEmpty != false && state.resets.isEmpty, ordering: .releasing)
      }
      return state.resets[parsed.key] == nil ? .pass : .drop
    }
  }

  /// What a client says: on a connection that is over it is answered by a reset, in place of the guest.
  func incoming(_ frame: UnsafeRawBufferPointer, _ parsed: Frame) -> Verdict {
    if isSettled.load(ordering: .acquiring) || parsed.kind != .tcp { return .pass }
    return state.withLock { state in
      let flow = parsed.key.reversed
      guard state.resets[flow] != nil else { return .pass }
      // Another connection of the same name.
      if parsed.flags.contains(.syn) {
        state.resets[flow] = nil
        return .pass
      }
      guard parsed.flags.contains(.ack), !parsed.flags.contains(.rst) else { return .drop }
      return .replace(
        ResetFrame.answering(unsafe Array(frame), header: NetHeader.size, sequence: parsed.acknowledgement))
    }
  }
}
