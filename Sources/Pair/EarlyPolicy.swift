internal import Replication

/// Whether it pays to look for output that may leave early, by what came of it in the epochs before. Where most replies confirm
/// writes, or are made of what was just written, looking costs both sides a few microseconds a frame, and `colo` alone is faster.
/// It is tried again after a while. A value.
struct EarlyPolicy {
  /// Frames in an epoch below which nothing is concluded: looking at so few costs nothing that counts.
  private static let fewest: UInt64 = 64
  /// At least two: the last is ``EarlySearch/soon``.
  private static let (shortest, longest) = (2, 32)
  /// Epochs in a row that have to bring little the first time: clients may only be storing what they are about to read.
  private static let mostPoor = 3
  private var poor = 0
  /// Epochs to do without after the next one that brings little.
  private var span = Self.shortest
  /// Of the present ones, those that are left.
  private var left = 0

  /// - Parameters:
  ///   - early: frames of the epoch that left early.
  ///   - held: those that did not, because they were not marked or what they are made of has changed.
  /// - Returns: whether to look in the next epoch.
  mutating func epochEnded(early: UInt64, held: UInt64) -> EarlySearch {
    if left > 0 {
      left -= 1
      return left == 0 ? .on : left == 1 ? .soon : .off
    }
    guard early + held >= Self.fewest else { return .on }
    // Measured (lab store): with 0.6 early frames for each in vain this mode was slower than `colo`, with two it was faster.
    guard early < held else {
      (poor, span) = (0, Self.shortest)
      return .on
    }
    poor = min(poor + 1, Self.mostPoor)
    guard poor == Self.mostPoor else { return .on }
    left = span
    span = min(2 * span, Self.longest)
    return .off
  }
}
