/// Tells whether the peer is dead, from what arrives on several paths. A value; times are nanoseconds of one monotonic
/// clock, given by the caller.
///
/// The peer is dead when every path has been silent for the time-out. That is as short as the measured gaps allow: three times
/// the longest of the last half minute or more, within ``shortest`` and ``longest``, and the longest until so much is known.
/// (A mean and deviation, as for round-trip times, forget within a fifth of a second that a host takes a CPU away for tens of
/// milliseconds now and then.)
public struct FailureDetector: Sendable {
  /// One way on which signs of life arrive.
  private struct Path: Sendable {
    var last: UInt64
    /// Gaps in nanoseconds: the widest of the window that runs, and of the one before it.
    var widest: UInt64 = 0
    var widestBefore: UInt64?
    /// When the window that runs began.
    var window: UInt64
    var isHeard = false
    var hasEnded = false
  }

  /// So long is measured before silence is judged by it, in nanoseconds.
  public static let window: UInt64 = 30_000_000_000

  /// Time-outs in nanoseconds.
  public let shortest: UInt64
  public let longest: UInt64
  private var paths: [Path]

  /// - Parameter now: silence is counted from here on until something arrives.
  public init(paths: Int, shortest: UInt64 = 60_000_000, longest: UInt64 = 100_000_000, now: UInt64) {
    self.shortest = min(shortest, longest)
    self.longest = longest
    self.paths = [Path](repeating: Path(last: now, window: now), count: paths)
  }

  /// Something authentic came from the peer.
  public mutating func arrived(path: Int, now: UInt64) {
    guard paths.indices.contains(path) else { return }
    paths[path].widest = max(paths[path].widest, silence(path: path, now: now))
    if now > paths[path].window + Self.window {
      (paths[path].widestBefore, paths[path].widest, paths[path].window) = (paths[path].widest, 0, now)
    }
    paths[path].last = max(paths[path].last, now)
    // What was taken for its end (a refusal that anybody can have sent) was none.
    (paths[path].isHeard, paths[path].hasEnded) = (true, false)
  }

  /// Whether a sign of life has ever come this way.
  public func isHeard(path: Int) -> Bool { paths[path].isHeard }

  /// Nothing more comes this way, as far as can be known.
  public mutating func ended(path: Int) { paths[path].hasEnded = true }

  /// How long a path has been silent, in nanoseconds.
  public func silence(path: Int, now: UInt64) -> UInt64 { now - min(paths[path].last, now) }

  /// What each path has to say for the peer's death.
  public func silences(now: UInt64) -> String {
    let told = paths.indices.map { index in
      let time = "silent for \(silence(path: index, now: now) / 1_000_000) of \(timeout(path: index) / 1_000_000) ms"
      return "\(index == 0 ? "channel" : "beats") \(paths[index].hasEnded ? "ended" : time)"
    }
    return told.joined(separator: ", ")
  }

  /// The caller itself was not running (stopped, or starved): what the peer sent meanwhile is not read yet.
  public mutating func wasAway(until now: UInt64) {
    for index in paths.indices { paths[index].last = max(paths[index].last, now) }
  }

  /// Silence that a path may have, in nanoseconds.
  public func timeout(path: Int) -> UInt64 {
    guard let before = paths[path].widestBefore else { return longest }
    return min(max(3 * max(before, paths[path].widest), shortest), longest)
  }

  /// When the peer will be dead if nothing comes.
  public var deadline: UInt64 {
    paths.indices.map { paths[$0].hasEnded ? 0 : paths[$0].last + timeout(path: $0) }.max() ?? 0
  }

  /// - Parameter grace: more patience, in nanoseconds: while nobody could take over, haste gains nothing.
  public func isDead(now: UInt64, grace: UInt64 = 0) -> Bool { deadline == 0 || now > deadline + grace }
}
