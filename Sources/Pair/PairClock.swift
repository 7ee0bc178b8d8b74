internal import CLinux
internal import Devices
internal import Glibc

/// The beat of a pair.
enum PairClock {
  /// Nanoseconds between signs of life.
  static let heartbeat: UInt64 = 10_000_000

  /// Patience with a side that gets its first checkpoint, in nanoseconds.
  static let joiningGrace: UInt64 = 2_000_000_000

  /// Calls `body` every heartbeat until it says false, with the beat's number, and whether this thread was kept from running
  /// for so long that what the other side sent may not have been read.
  static func tick(_ body: (_ number: UInt64, _ away: Bool) -> Bool) {
    var number: UInt64 = 0
    var last = lx_monotonic_ns()
    while true {
      let now = lx_monotonic_ns()
      guard body(number, now - last > 4 * heartbeat) else { return }
      last = now
      number += 1
      usleep(UInt32(heartbeat / 1000))
    }
  }
}
