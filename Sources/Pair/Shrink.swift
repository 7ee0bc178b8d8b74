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
  /// vCPUs (guest) or host CPUs (host) that are left; nil for as few as the primary's clients do not have to wait for.
  public var target: Int?

  public init(level: Level = .off, target: Int? = 1) {
    self.level = level
    self.target = target
  }

  /// Each load makes all of the guest's CPUs active again, as they are on the primary. The machine is about to go on.
  func apply(_ machine: Machine, _ registers: PairRegisters?) {
    switch level {
    case .off: break
    case .host: machine.limitHostCPUs(target ?? 1)
    case .guest: registers?.want(target ?? 1)
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

/// How many CPUs a secondary's guest is left. Without a fixed number it begins with one. When the primary's clients wait for it, it
/// gets twice as many for a while, and keeps them if that helps: on a host that has no more to give it makes things worse. When
/// they have not waited for long it gets fewer. What was wrong is tried again after twice the time.
struct ShrinkPolicy: Sendable {
  /// Epochs that are judged together.
  static let window = 10
  /// Microseconds that output is held, on average: too long, and nothing to speak of.
  static let (late, prompt): (UInt32, UInt32) = (5000, 1500)
  /// Windows after which something is tried again.
  private static let (shortest, longest) = (5, 320)

  private(set) var active: Int
  private let isFixed: Bool
  private var sum: UInt64 = 0
  private var count = 0
  /// More are tried: how many there were before, and how long was waited for them.
  private var trial: (before: Int, wait: UInt64)?
  private var (fewerAfter, moreAfter) = (Self.shortest, Self.shortest)
  /// Windows in which nobody waited, and until more may be tried.
  private var (calm, rest) = (0, 0)
  /// The last change was to fewer.
  private var hasTakenAway = false

  init(_ target: Int?) {
    active = target ?? 1
    isFixed = target != nil
  }

  /// - Parameters:
  ///   - wait: microseconds that the primary's output was held in the epoch, on average.
  ///   - cpus: the guest's.
  /// - Returns: whether the number changes.
  mutating func epochEnded(wait: UInt32, of cpus: Int) -> Bool {
    if isFixed { return false }
    sum += UInt64(wait)
    count += 1
    guard count == Self.window else { return false }
    let before = active
    judge(sum / UInt64(count), cpus)
    (sum, count) = (0, 0)
    return active != before
  }

  private mutating func judge(_ wait: UInt64, _ cpus: Int) {
    rest = max(0, rest - 1)
    if let tried = trial.take() {
      if 5 * wait < 4 * tried.wait {
        moreAfter = Self.shortest
      } else {
        active = tried.before
        rest = moreAfter
        moreAfter = min(2 * moreAfter, Self.longest)
      }
    } else if wait > Self.late {
      calm = 0
      guard rest == 0, active < cpus else { return }
      if hasTakenAway { fewerAfter = min(2 * fewerAfter, Self.longest) }
      hasTakenAway = false
      trial = (active, wait)
      active = min(2 * active, cpus)
    } else {
      calm = wait < Self.prompt ? calm + 1 : 0
      guard calm >= fewerAfter, active > 1 else { return }
      active -= 1
      (calm, hasTakenAway) = (0, true)
    }
  }
}
