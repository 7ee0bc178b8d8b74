internal import CLinux
internal import Replication
internal import Synchronization

/// Counts what happens in a pair, in fixed memory. From any thread.
final class PairMeter: Sendable {
  private struct State {
    var loaded: UInt64 = 0
    var causes = InlineArray<6, UInt64>(repeating: 0)
    var pauses = Histogram()
    var pages = Histogram()
    var lastPages: UInt64 = 0
    var lags = Histogram()
    var receives = Histogram()
    var loads = Histogram()
    /// The checkpoint on its way, and when its pause ended.
    var sending: (epoch: UInt64, since: UInt64) = (0, 0)
    /// The frame of input whose acknowledgement is awaited.
    var probe: (number: UInt64, since: UInt64)?
    /// What the channels before this one sent.
    var bytesBefore: UInt64 = 0
    var inputFrames: UInt64 = 0
    var pagesRolledBack: UInt64 = 0
    var ownEnds: UInt64 = 0
    /// Frames that were held, and for how long, by the last checkpoint.
    var waited: (frames: UInt64, time: UInt64) = (0, 0)
    var shrinks = Histogram()
    var copy: Copy?
  }

  /// The first copy, in bytes.
  private struct Copy {
    var whole: UInt64
    var began: UInt64
    var done: UInt64 = 0
    var told: UInt64 = 0
  }

  private static let firstTold: UInt64 = 2_000_000_000
  private static let toldEvery: UInt64 = 1_000_000_000

  private let state = Mutex(State())
  private let onProgress = Mutex<@Sendable (String) -> Void>({ _ in })

  func tellProgress(to tell: @escaping @Sendable (String) -> Void) { onProgress.withLock { $0 = tell } }

  // MARK: The primary

  func tookCheckpoint(_ epoch: UInt64, _ cause: CheckpointCause, pause: UInt64, pages: Int) {
    let now = lx_monotonic_ns()
    state.withLock { state in
      if let index = CheckpointCause.allCases.firstIndex(of: cause) { state.causes[index] += 1 }
      state.pauses.record(pause)
      state.pages.record(UInt64(pages))
      state.lastPages = UInt64(pages)
      state.sending = (epoch, now)
      state.copy = nil
    }
  }

  /// How long output that did not leave at once or early was held since the last call, in microseconds, on average.
  func wait(_ counters: OutputGate.Counters) -> UInt32 {
    state.withLock { state in
      let (frames, time) = (counters.equal + counters.checkpointed, counters.waitedTime)
      defer { state.waited = (frames, time) }
      let count = frames - state.waited.frames
      return count == 0 ? 0 : UInt32(clamping: (time - state.waited.time) / count / 1000)
    }
  }

  func received(_ epoch: UInt64) {
    let now = lx_monotonic_ns()
    state.withLock { if $0.sending.epoch == epoch { $0.receives.record(now - min($0.sending.since, now)) } }
  }

  func sentInput(_ number: UInt64) {
    let now = lx_monotonic_ns()
    state.withLock { if $0.probe == nil { $0.probe = (number, now) } }
  }

  func inputAcknowledged(_ count: UInt64) {
    let now = lx_monotonic_ns()
    state.withLock { state in
      guard let probe = state.probe, probe.number <= count else { return }
      state.lags.record(now - min(probe.since, now))
      state.probe = nil
    }
  }

  /// Another secondary: what the last one owes does not come any more.
  func channelEnded(bytesSent: UInt64) {
    state.withLock { state in
      state.bytesBefore += bytesSent
      state.probe = nil
      state.copy = nil
    }
  }

  /// - Parameter bytes: how much there is to copy: RAM and disks.
  func beganCopy(of bytes: UInt64) { state.withLock { $0.copy = Copy(whole: bytes, began: lx_monotonic_ns()) } }

  /// So much of `what` has been copied; tells of it when the copy takes long.
  func copied(_ bytes: UInt64, of what: String, at: UInt64, whole: UInt64) {
    let now = lx_monotonic_ns()
    let tells = state.withLock { state in
      guard var copy = state.copy else { return false }
      copy.done += bytes
      let tells = now - copy.began > Self.firstTold && now - copy.told > Self.toldEvery
      if tells { copy.told = now }
      state.copy = copy
      return tells
    }
    guard tells else { return }
    let percent = whole == 0 ? 100 : min(at, whole) * 100 / whole
    onProgress.withLock { $0 }("copying \(what) \(percent) %")
  }

  // MARK: The secondary

  func loggedInput(_ number: UInt64) { state.withLock { $0.inputFrames = max($0.inputFrames, number) } }

  /// So long after a load the guest had left the CPUs idle that it is to.
  func shrank(nanoseconds: UInt64) { state.withLock { $0.shrinks.record(nanoseconds) } }

  func rolledBack(pages: Int) { state.withLock { $0.pagesRolledBack += UInt64(pages) } }

  /// The guest here ended where the primary's had not as yet; a checkpoint puts it back. Told the first few times.
  func ownGuestEnded(_ how: String) {
    let count = state.withLock { state in
      state.ownEnds += 1
      return state.ownEnds
    }
    if count <= Self.endsTold {
      onProgress.withLock { $0 }("this side's guest ended by itself, and is put back: \(how)")
    }
  }
  private static let endsTold = 10

  // MARK: Both

  func loaded(_ epoch: UInt64, nanoseconds: UInt64) {
    state.withLock { state in
      state.loaded = epoch
      state.loads.record(nanoseconds)
    }
  }

  /// Fills in what this meter knows of a primary.
  func fill(primary status: inout PairStatus, bytesSent: UInt64) {
    state.withLock { state in
      status.loaded = state.loaded
      status.loadMicroseconds = PairStatus.Times(state.loads)
      status.checkpoints = [:]
      for (index, cause) in CheckpointCause.allCases.enumerated() {
        status.checkpoints?[cause.rawValue] = state.causes[index]
      }
      status.pauseMicroseconds = PairStatus.Times(state.pauses)
      status.pauseSpreadMicroseconds = PairStatus.spread(state.pauses)
      status.dirtyPages = PairStatus.Pages(state.pages, last: state.lastPages)
      status.lagMicroseconds = PairStatus.Times(state.lags)
      status.receiveMicroseconds = PairStatus.Times(state.receives)
      status.bytesSent = state.bytesBefore + bytesSent
      status.copying = state.copy.map { $0.whole == 0 ? 1 : min(1, Double($0.done) / Double($0.whole)) }
    }
  }

  /// Fills in what this meter knows of a secondary.
  func fill(secondary status: inout PairStatus) {
    state.withLock { state in
      status.loaded = state.loaded
      status.loadMicroseconds = PairStatus.Times(state.loads)
      status.inputFrames = state.inputFrames
      status.pagesRolledBack = state.pagesRolledBack
      status.ownEnds = state.ownEnds
      status.shrinkMicroseconds = state.shrinks.count == 0 ? nil : PairStatus.Times(state.shrinks)
    }
  }
}
