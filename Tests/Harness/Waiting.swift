import Foundation

/// Looks five times a millisecond whether `condition` holds, for `seconds` (times ``Environment/patience``) at the most; false when
/// it never did.
public func waitUntil(seconds: Double = 5, _ condition: () throws -> Bool) rethrows -> Bool {
  try isTrue(within: seconds * Double(Environment.patience), condition)
}

private func isTrue(within seconds: Double, _ condition: () throws -> Bool) rethrows -> Bool {
  let deadline = ContinuousClock.now + .seconds(seconds)
  while try !condition() {
    if ContinuousClock.now >= deadline { return false }
    usleep(200)
  }
  return true
}

/// Whether `condition` holds throughout `seconds`: for what must not happen, of which no event can tell. Too short a time
/// makes the test weaker, never wrong.
public func staysTrue(for seconds: Double, _ condition: () throws -> Bool) rethrows -> Bool {
  try !isTrue(within: seconds) { try !condition() }
}
