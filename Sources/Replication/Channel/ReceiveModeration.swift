/// Has a thread that receives wait for company, as network cards moderate interrupts: where waking it up takes much of a CPU, it
/// wakes up less often for more at a time. It goes by the thread's own CPU time, so that a host on which that is cheap never waits.
/// A value.
struct ReceiveModeration {
  /// Nanoseconds from one reception to the next, while it moderates.
  static let gap: UInt64 = 500_000
  /// Per cent of a CPU above which it begins, and below which it ends.
  private static let (much, little) = (10 as UInt64, 2 as UInt64)
  /// Receptions after which that is looked at.
  private static let period = 64

  private var isOn = false
  private var receptions = 0
  private var (since, used) = (0 as UInt64, 0 as UInt64)
  private var last: UInt64 = 0
  private var hasReceived = false

  /// Something has come.
  mutating func received() { hasReceived = true }

  /// The thread has taken in all there was, and is about to wait for more.
  /// - Parameters:
  ///   - now: monotonic nanoseconds.
  ///   - cpu: nanoseconds that the thread has run; asked for at each 64th reception.
  /// - Returns: how long not to look; 0: as soon as there is something. After a pause in which nothing came, too: it is no polling.
  mutating func pause(now: UInt64, cpu: () -> UInt64) -> UInt64 {
    guard hasReceived else { return 0 }
    hasReceived = false
    receptions += 1
    if receptions == Self.period {
      let used = cpu()
      let share = (used - self.used) * 100 / max(now - since, 1)
      if share > Self.much { isOn = true } else if share < Self.little { isOn = false }
      (receptions, since, self.used) = (0, now, used)
    }
    guard isOn, now < last + Self.gap else {
      last = now
      return 0
    }
    last += Self.gap
    return last - now
  }
}
