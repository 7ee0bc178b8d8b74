internal import Synchronization

/// How many frames a guest has marked, or why not: what stands behind how many leave early. From any thread.
final class Markings: Sendable {
  private let unmarked = Atomic<UInt64>(0)
  private let changed = Atomic<UInt64>(0)
  private let open = Atomic<UInt64>(0)
  private let refused = Atomic<UInt64>(0)

  func count(_ marking: Marking) {
    switch marking {
    case .none, .marked: break
    case .unmarked: unmarked.wrappingAdd(1, ordering: .relaxed)
    case .changed: changed.wrappingAdd(1, ordering: .relaxed)
    case .open: open.wrappingAdd(1, ordering: .relaxed)
    }
  }

  /// A frame that may leave early by what it is made of could not be told; it counts as open, too.
  func countRefused() { refused.wrappingAdd(1, ordering: .relaxed) }

  var status: PairStatus.NotEarly {
    let (open, refused) = (open.load(ordering: .relaxed), refused.load(ordering: .relaxed))
    return PairStatus.NotEarly(
      unmarked: unmarked.load(ordering: .relaxed), changed: changed.load(ordering: .relaxed),
      unknown: open - min(refused, open), refused: refused)
  }
}
