/// Tells whether the peer is dead, from what arrives on several paths. A value; times are nanoseconds of one monotonic
/// clock, given by the caller.
///
/// The peer is dead when every path has been silent for the time-out. That is as short as the measured gaps allow: their
/// mean and six times their deviation (so that a jittery host is not declared dead), within ``shortest`` and ``longest``.
public struct FailureDetector: Sendable {
  /// One way on which signs of life arrive.
  private struct Path: Sendable {
    var last: UInt64
    var mean: Double
    var deviation = 0.0
    var isHeard = false
    var hasEnded = false
  }

  /// Time-outs in nanoseconds.
  public let shortest: UInt64
  public let longest: UInt64
  private var paths: [Path]

  /// - Parameters:
  ///   - interval: how often the peer sends on each path, in nanoseconds.
  ///   - now: silence is counted from here on until something arrives.
  public init(
    paths: Int, interval: UInt64, shortest: UInt64 = 40_000_000, longest: UInt64 = 100_000_000, now: UInt64
  ) {
    self.shortest = min(shortest, longest)
    self.longest = longest
    self.paths = [Path](repeating: Path(last: now, mean: Double(interval)), count: paths)
  }

  /// Something authentic came from the peer.
  public mutating func arrived(path: Int, now: UInt64) {
    guard paths.indices.contains(path) else { return }
    let gap = Double(now &- min(paths[path].last, now))
    let error = gap - paths[path].mean
    // The estimator TCP uses for round-trip times (RFC 6298); a wider gap widens it four times faster than it narrows.
    paths[path].mean += error / 8
    paths[path].deviation += (abs(error) - paths[path].deviation) / (abs(error) > paths[path].deviation ? 4 : 16)
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
    let estimate = paths[path].mean + 6 * paths[path].deviation
    return min(max(UInt64(estimate), shortest), longest)
  }

  /// When the peer will be dead if nothing comes.
  public var deadline: UInt64 {
    paths.indices.map { paths[$0].hasEnded ? 0 : paths[$0].last + timeout(path: $0) }.max() ?? 0
  }

  /// - Parameter grace: more patience, in nanoseconds: while nobody could take over, haste gains nothing.
  public func isDead(now: UInt64, grace: UInt64 = 0) -> Bool { deadline == 0 || now > deadline + grace }
}
