internal import CLinux

/// How long one visit of the device thread to a queue may work before other descriptors, and a wish to park, are looked at.
struct Visit {
  /// Nanoseconds: who pauses the machine waits for a few of these at the most.
  static let time: UInt64 = 1_000_000
  private let end = lx_monotonic_ns() &+ Self.time

  var isOver: Bool { lx_monotonic_ns() >= end }
}
