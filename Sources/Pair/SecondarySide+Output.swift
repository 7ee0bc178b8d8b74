internal import CLinux
internal import Devices
internal import Glibc
internal import MiniVMM
internal import Replication
internal import Synchronization

/// What the guest that follows says: to the primary, which compares, or compared here where it was told that it left early.
extension SecondarySide {
  public func output(_ token: UInt64?, _ frame: UnsafeRawBufferPointer, _ marking: Marking) {
    guard mode.compares else { return }
    let copy = unsafe Array(frame)
    let (channel, loaded) = state.withLock { state in
      state.unconfirmed.add(copy, now: lx_monotonic_ns())
      return (state.channel, state.loaded)
    }
    guard let channel else { return }
    let isEarly = mode == .coloPlusPlus
    say(isEarly ? early.said(copy, isMarked: marking == .marked) : .init(base: loaded, frames: [copy]), channel)
  }

  func say(_ report: EarlyWatch.Report, _ channel: Channel) {
    do throws(ChannelError) {
      for frame in report.frames {
        // By its code where that is shorter, and the primary keeps the bytes to compare it with.
        let said = coder.withLock { coder in
          unsafe frame.withUnsafeBytes { bytes in
            unsafe coder?.said(bytes, header: NetHeader.size) { mode == .coloPlusPlus && early.wasTold($0) }
          }
        }
        if let said = said.flatMap(\.self) {
          try channel.post(
            .piece(card: 0, base: report.base, piece: said.piece, acknowledgement: said.acknowledgement))
        } else {
          try channel.post(.output, card: 0, number: report.base, frame: frame)
        }
      }
      for flow in report.contradictions { try channel.post(.contradicted(card: 0, base: report.base, flow: flow)) }
    } catch { channel.abandon() }
  }

  /// How long the guest takes to leave the CPUs idle that it is to, for the figures: fifty milliseconds when it has not by then, or
  /// until the next checkpoint is there.
  func timeShrinking(_ parts: Parts, _ queue: CheckpointQueue) {
    let wanted = shrinker.withLock { $0.active }
    guard shrink.level == .guest, mode.compares, wanted < parts.machine.cpus, parts.registers.active != nil else {
      return
    }
    let start = parts.machine.resumedAt
    while lx_monotonic_ns() - start < 50_000_000, queue.isIdle, parts.registers.active != wanted { usleep(50) }
    meter.shrank(nanoseconds: min(lx_monotonic_ns() - start, 50_000_000))
  }
}
