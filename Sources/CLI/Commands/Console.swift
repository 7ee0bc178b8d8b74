import CLinux
import Devices
import Glibc
import Synchronization

/// Standard input to the guest's serial port. Control thread.
///
/// What the guest has no room for stays here, and the terminal is not read until the guest has taken it.
final class ConsoleInput: EventHandler {
  /// Ctrl-] ends the machine.
  static let escape: UInt8 = 0x1d

  private let serial: Serial8250
  private let loop: EventLoop
  private let onEscape: @Sendable () -> Void
  private let descriptor: CInt
  private let state = Mutex(State())

  private struct State {
    var source: EventLoop.Source?
    var waiting: ArraySlice<UInt8> = []
  }

  private static let inputTag: UInt32 = 0
  private static let roomTag: UInt32 = 1

  /// Starts reading standard input. A terminal is put into raw mode until the process ends.
  init(serial: Serial8250, loop: EventLoop, onEscape: @escaping @Sendable () -> Void) throws(HostError) {
    self.serial = serial
    self.loop = loop
    self.onEscape = onEscape
    // A description of our own: non-blocking here must not make the shell's standard input so.
    let again = unsafe lx_open("/proc/self/fd/0", O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)
    descriptor = again >= 0 ? again : 0
    if lx_isatty(0) == 1 { lx_terminal_raw(0) }
    _ = try loop.register(serial.inputRoomDescriptor, events: EPOLLIN.rawValue, handler: self, tag: Self.roomTag)
    // A regular file or /dev/null can't be waited for; there is nobody to type then.
    let source = try? loop.register(descriptor, events: EPOLLIN.rawValue, handler: self, tag: Self.inputTag)
    state.withLock { $0.source = source }
  }

  func ready(tag: UInt32, events: UInt32) {
    state.withLock { state in
      if tag == Self.roomTag {
        _ = lx_eventfd_take(serial.inputRoomDescriptor)
      } else {
        read(&state)
      }
      deliver(&state)
    }
  }

  private func read(_ state: inout State) {
    guard state.waiting.isEmpty else { return }
    var bytes = [UInt8](repeating: 0, count: 1024)
    let got = unsafe bytes.withUnsafeMutableBytes { unsafe lx_read(descriptor, $0.baseAddress, $0.count) }
    if got == -Int(EAGAIN) || got == -Int(EINTR) { return }
    guard got > 0 else {
      if let source = state.source { loop.unregister(source) }
      state.source = nil
      return
    }
    state.waiting = bytes[..<got]
    if let escape = state.waiting.firstIndex(of: Self.escape), lx_isatty(0) == 1 {
      state.waiting = state.waiting[..<escape]
      onEscape()
    }
  }

  private func deliver(_ state: inout State) {
    let taken = serial.receive(state.waiting)
    state.waiting = state.waiting.dropFirst(taken)
    guard let source = state.source else { return }
    loop.setInterest(source, events: state.waiting.isEmpty ? EPOLLIN.rawValue : 0)
  }
}
