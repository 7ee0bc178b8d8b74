internal import Replication
internal import Synchronization

/// How many frames a guest has marked, or why not: what stands behind how many leave early. From any thread.
final class Markings: Sendable {
  private let marked = Atomic<UInt64>(0)
  private let unmarked = Atomic<UInt64>(0)
  private let changed = Atomic<UInt64>(0)
  private let open = Atomic<UInt64>(0)
  private let refused = Atomic<UInt64>(0)
  private let unsought = Atomic<UInt64>(0)
  /// What was counted before the present epoch.
  private let policy = Mutex((policy: EarlyPolicy(), early: UInt64(0), held: UInt64(0)))

  func count(_ marking: Marking) {
    switch marking {
    case .none: break
    case .unsought: unsought.wrappingAdd(1, ordering: .relaxed)
    case .marked: marked.wrappingAdd(1, ordering: .relaxed)
    case .unmarked: unmarked.wrappingAdd(1, ordering: .relaxed)
    case .changed: changed.wrappingAdd(1, ordering: .relaxed)
    case .open: open.wrappingAdd(1, ordering: .relaxed)
    }
  }

  /// A frame that may leave early by what it is made of could not be told; it counts as open, too.
  func countRefused() { refused.wrappingAdd(1, ordering: .relaxed) }

  /// An epoch has ended.
  /// - Returns: whether output that may leave early is to be looked for in the next.
  func epochEnded() -> EarlySearch {
    let early = marked.load(ordering: .relaxed)
    let held = unmarked.load(ordering: .relaxed) + changed.load(ordering: .relaxed)
    return policy.withLock { known in
      defer { (known.early, known.held) = (early, held) }
      return known.policy.epochEnded(early: early - known.early, held: held - known.held)
    }
  }

  var status: PairStatus.NotEarly {
    let (open, refused) = (open.load(ordering: .relaxed), refused.load(ordering: .relaxed))
    return PairStatus.NotEarly(
      unmarked: unmarked.load(ordering: .relaxed), changed: changed.load(ordering: .relaxed),
      unknown: open - min(refused, open), refused: refused, unsought: unsought.load(ordering: .relaxed))
  }
}
