internal import Replication
internal import Synchronization

/// What the guest that serves says, and what its secondary's guest does.
extension PrimarySide {
  // MARK: PairTraffic, device thread

  public func output(_ token: UInt64?, _ frame: UnsafeRawBufferPointer, _ marking: Marking) {
    guard options.mode.compares, let token, frame.count > 12 else { return }
    let bytes = unsafe UnsafeRawBufferPointer(rebasing: frame[12...])
    compare { comparison in
      unsafe bytes.withMemoryRebound(to: UInt8.self) {
        let frame = unsafe Span(_unsafeElements: $0)
        return marking == .marked
          ? comparison.comparator.agree(frame) : comparison.comparator.primary(frame, token: token)
      }
    }
    guard options.mode == .coloPlusPlus else { return }
    if marking == .unmarked {
      let parsed = unsafe Frame(frame, header: NetHeader.size)
      if parsed.kind == .tcp, parsed.payload.isEmpty {
        // What the secondary's guest has acknowledged with output that need not come, it does not say again.
        if gate.hasSentEarly(of: parsed.key) { unsafe ask(frame) }
        return
      }
    }
    markings.count(marking)
    if marking == .open { unsafe ask(frame) }
  }

  private func ask(_ frame: UnsafeRawBufferPointer) {
    unsafe early.ask(frame, epoch: gate.epoch)
    isAwaited.store(true, ordering: .relaxed)
  }

  public func leavesEarly(_ frame: UnsafeRawBufferPointer) -> UInt64? {
    let told = unsafe early.tell(frame, epoch: gate.epoch)
    if told == nil { markings.countRefused() }
    return told
  }

  // MARK: Any thread

  /// Hands a frame to the comparator, and the gate what is equal by now, which leaves when that is flushed. Not under the lock: what
  /// was equal stays so, whatever is cut meanwhile.
  func compare(_ body: (inout Comparison) -> ComparisonOutcome) {
    let (outcome, equal, epoch) = comparison.withLock { comparison in
      let outcome = body(&comparison)
      var equal: [UInt64] = []
      while let token = comparison.comparator.nextEqual() { equal.append(token) }
      return (outcome, equal, comparison.base &+ 1)
    }
    if !equal.isEmpty { gate.compared(equal, .equal) }
    switch outcome {
    case .consistent: break
    case .mismatch(let mismatch):
      gate.contradict(mismatch.flow, in: epoch)
      requestCheckpoint(.mismatch)
    case .overflow: requestCheckpoint(.queueFull)
    }
  }
}
