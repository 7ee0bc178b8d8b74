import CLinux
import Devices
import Glibc

/// What the main thread waits for: signals, the control socket, the console, the machine's end. Made before any other
/// thread, so that all inherit the mask of signals.
final class MainLoop: EventHandler {
  let events: EventLoop
  /// Readable when the process goes on after a stop (SIGCONT).
  let continued: CInt

  init() throws {
    lx_ignore_signals()
    lx_catch_fatal_signals()
    events = try EventLoop()
    let signals = lx_termination_descriptor()
    guard signals >= 0 else { throw HostError(operation: "signalfd", errno: -signals) }
    continued = lx_continue_descriptor()
    guard continued >= 0 else { throw HostError(operation: "signalfd", errno: -continued) }
    try end(on: signals)
  }

  /// Ends the loop once `descriptor` is readable.
  func end(on descriptor: CInt) throws {
    _ = try events.register(descriptor, events: EPOLLIN.rawValue, handler: self, tag: 0)
  }

  func run() { events.run() }

  /// From any thread.
  func stop() { events.stop() }

  func ready(tag: UInt32, events: UInt32) { stop() }
}
