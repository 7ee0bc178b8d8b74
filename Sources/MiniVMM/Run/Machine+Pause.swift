internal import CKVM
internal import CLinux
internal import Devices
internal import Synchronization

/// What a pause took, in nanoseconds.
public struct PauseReport: Equatable, Sendable {
  /// From the kick to the last vCPU out of KVM_RUN.
  public let vcpus: UInt64
  /// From there until the device thread was parked and, if that was asked for, nothing was in flight any more.
  public let devices: UInt64
  public var total: UInt64 { vcpus + devices }
}

extension Machine {
  /// Stops the guest. On return every vCPU is out of KVM_RUN with its last port or MMIO access complete and the device thread
  /// is parked: state and RAM hold still. A machine that is paused it only drains, one that was not started it leaves alone.
  /// - Parameter draining: also waits for disk requests in flight. Without, those go on beside the pause; until it ends, the
  ///   state has them as in flight, and what they read belongs to nobody.
  @discardableResult
  public func pause(draining: Bool = true) -> PauseReport {
    let isRunning = phase.withLock { phase in
      guard phase == .running else { return false }
      phase = .paused
      return true
    }
    guard isRunning else {
      if draining, phase.withLock({ $0 == .paused }) { for device in devices { device.quiesce() } }
      return PauseReport(vcpus: 0, devices: 0)
    }
    let start = lx_monotonic_ns()
    pausedAt.store(start, ordering: .relaxed)
    for vcpu in vcpus { vcpu.wantRegisters() }
    control.ask(.pause)
    kick()
    // Both stop at the same time.
    eventLoop.beginParking()
    control.waitUntilParked()
    let stopped = lx_monotonic_ns()
    eventLoop.park()
    if draining { for device in devices { device.quiesce() } }
    return PauseReport(vcpus: stopped - start, devices: lx_monotonic_ns() - stopped)
  }

  /// Lets a paused machine go on.
  public func resume() {
    let isPaused = phase.withLock { phase in
      guard phase == .paused else { return false }
      phase = .running
      return true
    }
    guard isPaused else { return }
    // Tells a guest with kvmclock that it was stopped for long, so that its watchdogs don't bark; EINVAL means it has none.
    if lx_monotonic_ns() - pausedAt.load(ordering: .relaxed) > Self.noticeablePause {
      for vcpu in vcpus { _ = try? vcpu.descriptor.call(.kvmclockCtrl) }
    }
    lastResumed.store(lx_monotonic_ns(), ordering: .relaxed)
    control.ask(.run)
    // The guest need not wait for devices that look at what they have missed.
    for device in devices { device.resume() }
    eventLoop.unpark()
  }

  /// From now on a guest that ends only stands still, until ``load(_:state:dirty:refreshing:clock:)`` puts it back to where it
  /// had not: a secondary's guest runs ahead of what is known to have happened, and may end where the primary's goes on.
  /// - Returns: an end that was held, and is forgotten.
  @discardableResult
  public func holdEnds() -> MachineEnd? { control.holdEnds(true) }

  /// Ends count again; one that was held ends the machine.
  public func acceptEnds() {
    if let end = control.holdEnds(false) { endMachine(end) }
  }

  /// Nanoseconds; Linux's shortest watchdog (hung vCPU, soft lockup) takes seconds.
  private static let noticeablePause: UInt64 = 100_000_000

  /// When the guest was let go on last, in monotonic nanoseconds: who asks for it may lose the processor to it.
  public var resumedAt: UInt64 { lastResumed.load(ordering: .relaxed) }
}
