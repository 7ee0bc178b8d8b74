internal import Devices
internal import MiniVMM

/// How a secondary's guest is made to take less of its host than the primary's: it has to say the same, not to be as fast.
public struct Shrink: Equatable, Sendable {
  public enum Level: String, Codable, Sendable, CaseIterable {
    /// All vCPUs run as on the primary.
    case off
    /// The vCPUs share host CPUs, and the guest does not know: one that spins for a lock may wait for one that does not run.
    case host
    /// The guest is asked to leave CPUs idle.
    case guest
  }

  public var level: Level
  /// vCPUs (guest) or host CPUs (host) that are left.
  public var target: Int

  public init(level: Level = .off, target: Int = 1) {
    self.level = level
    self.target = target
  }

  /// Each load makes all of the guest's CPUs active again, as they are on the primary. The machine is about to go on.
  func apply(_ machine: Machine, _ registers: PairRegisters?) {
    switch level {
    case .off: break
    case .host: machine.limitHostCPUs(target)
    case .guest: registers?.want(target)
    }
  }

  /// The guest serves from now on. The machine stands still.
  func lift(_ machine: Machine, _ registers: PairRegisters?) {
    switch level {
    case .off: break
    case .host: machine.limitHostCPUs(nil)
    case .guest: registers?.want(nil)
    }
  }
}
