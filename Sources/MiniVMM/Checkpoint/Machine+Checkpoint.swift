internal import CKVM
internal import CLinux
public import GuestMemory
internal import Synchronization

/// What taking a checkpoint cost the guest, in nanoseconds.
public struct CaptureReport: Equatable, Sendable {
  public var pause: PauseReport
  public var save: UInt64
  /// Finding the dirty pages, and copying them.
  public var harvest: UInt64
  public var copy: UInt64
  public var total: UInt64 { pause.total + save + harvest + copy }
}

extension Machine {
  /// Gathers the devices' states in vain while the guest runs, before a ``capture(into:dirty:)``: what is not in the processor's
  /// caches would be fetched while it stands still, and gathering take 28 instead of 10 µs.
  public func prepareCapture() { for device in devices { _ = gather(device) } }

  /// Takes what has changed since the last capture: machine state, and copies of the pages that were written. Pauses the
  /// machine and leaves it paused, so that the caller can cut its other streams at the same point; ``resume()`` ends the
  /// price the guest pays. Disk requests in flight are not waited for: who loads the state does them again.
  /// - Parameters:
  ///   - stage: emptied, then filled.
  ///   - dirty: the scratch set; emptied.
  public func capture(into stage: PageStage, dirty: inout PageSet) throws(MachineError) -> (
    GatheredState, CaptureReport
  ) {
    let paused = pause(draining: false)
    let start = lx_monotonic_ns()
    // Before the pages: should KVM write to guest RAM as it is asked, those pages belong to this checkpoint.
    let state = try gather()
    let saved = lx_monotonic_ns()
    dirty.removeAll()
    try harvestDirtyPages(into: &dirty)
    let harvested = lx_monotonic_ns()
    stage.removeAll()
    do throws(GuestMemoryError) { try stage.add(dirty, of: memory) } catch { throw .memory(error) }
    let report = CaptureReport(
      pause: paused, save: saved - start, harvest: harvested - saved, copy: lx_monotonic_ns() - harvested)
    return (state, report)
  }

  /// Puts the machine where a checkpoint stands: the checkpoint's RAM forward by `stages`, oldest first, and the guest's view back
  /// to it; then the machine state. Its RAM rolls back (``GuestMemory/rollsBack``). A machine that runs is paused, and stays so.
  /// - Parameters:
  ///   - dirty: emptied, then filled with what was put back.
  ///   - clock: a secondary in step goes on where the primary stood.
  public func load(
    _ stages: [PageStage], state: [UInt8], dirty: inout PageSet, refreshing: Bool, clock: ClockPolicy
  ) throws(MachineError) {
    pause()
    dirty.removeAll()
    if phase.withLock({ $0 == .made || $0 == .ready }) {
      memory.dirty.harvest(into: &dirty)
    } else if refreshing {
      try refreshTranslations(harvestingInto: &dirty)
    } else {
      try harvestDirtyPages(into: &dirty)
    }
    for stage in stages {
      for (index, page) in stage.pages.enumerated() {
        let contents = unsafe UnsafeRawBufferPointer(stage.contents(index))
        guard unsafe memory.setCheckpointPage(page, contents) else {
          throw .wrongPhase("a checkpoint page outside guest RAM")
        }
        // Its view may be a copy that no log has: KVM makes it before it lets the guest write, and a guest that is stopped in
        // between has not written. Such a copy is as good as the page, until that changes.
        dirty.insert(page)
      }
    }
    let failure = memory.rollBack(dirty)
    guard failure == 0 else { throw .memory(.system(operation: "madvise", errno: failure)) }
    try restore(state, clock: clock)
    // What restoring wrote (rings, interrupt status) is the guest's own again.
  }
}
