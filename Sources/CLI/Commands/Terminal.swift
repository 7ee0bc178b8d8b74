import CLinux
import Devices
import Glibc

/// The terminal on standard input: in raw mode while this process's group is in its foreground, and left alone while another is.
/// Main thread.
final class Terminal: EventHandler {
  /// Nanoseconds between two looks at who has the terminal, while another group has it: a shell need not say.
  private static let pause: UInt64 = 500_000_000
  private enum Tag { static let timer: UInt32 = 0, continued: UInt32 = 1 }

  private let main: MainLoop
  private let timer: CInt
  private let setsMode: Bool
  private let onChange: @Sendable (Bool) -> Void

  static var isThere: Bool { lx_isatty(0) == 1 }

  /// - Parameters:
  ///   - setsMode: false where the parent process sees to the mode.
  ///   - onChange: called with whether the terminal may be read, at once and whenever that may have changed.
  init(_ main: MainLoop, setsMode: Bool, onChange: @escaping @Sendable (Bool) -> Void = { _ in }) throws(HostError) {
    self.main = main
    self.setsMode = setsMode
    self.onChange = onChange
    timer = lx_timerfd()
    guard timer >= 0 else { throw HostError(operation: "timerfd_create", errno: -timer) }
    _ = try main.events.register(timer, events: EPOLLIN.rawValue, handler: self, tag: Tag.timer)
    _ = try main.events.register(main.continued, events: EPOLLIN.rawValue, handler: self, tag: Tag.continued)
    look()
  }

  /// A read has failed: the terminal is another's, or has hung up. It is looked at again, but not at once.
  func failed() { lx_timerfd_arm(timer, Self.pause) }

  private func look() {
    let isOurs = lx_terminal_is_ours(0) != 0
    if isOurs, setsMode { lx_terminal_raw(0) }
    lx_timerfd_arm(timer, isOurs ? 0 : Self.pause)
    onChange(isOurs)
  }

  func ready(tag: UInt32, events: UInt32) {
    if tag == Tag.timer { _ = lx_eventfd_take(timer) } else { lx_signal_take(main.continued) }
    look()
  }
}
