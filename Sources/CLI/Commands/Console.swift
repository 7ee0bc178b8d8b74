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
    /// Nil where standard input is none.
    var terminal: Terminal?
    var waiting: ArraySlice<UInt8> = []
  }

  private static let inputTag: UInt32 = 0
  private static let roomTag: UInt32 = 1

  /// Starts reading standard input; a terminal whenever it is ours (``Terminal``).
  init(serial: Serial8250, main: MainLoop) throws(HostError) {
    self.serial = serial
    loop = main.events
    onEscape = { main.stop() }
    // A description of our own: non-blocking here must not make the shell's standard input so.
    let again = unsafe lx_open("/proc/self/fd/0", O_RDONLY | O_NONBLOCK | O_NOCTTY, 0)
    descriptor = again >= 0 ? again : 0
    _ = try loop.register(serial.inputRoomDescriptor, events: EPOLLIN.rawValue, handler: self, tag: Self.roomTag)
    if Terminal.isThere {
      let terminal = try Terminal(main, setsMode: !ChildOptions.isChild) { [self] in listen($0) }
      state.withLock { $0.terminal = terminal }
    } else {
      listen(true)
    }
  }

  /// Starts or stops waiting for input.
  private func listen(_ wanted: Bool) {
    state.withLock { state in
      if let source = state.source, !wanted {
        loop.unregister(source)
        state.source = nil
      } else if state.source == nil, wanted {
        // A regular file or /dev/null can't be waited for; there is nobody to type then.
        state.source = try? loop.register(descriptor, events: EPOLLIN.rawValue, handler: self, tag: Self.inputTag)
      }
    }
  }

  func ready(tag: UInt32, events: UInt32) {
    let lost = state.withLock { state -> Terminal? in
      var terminal: Terminal?
      if tag == Self.roomTag {
        _ = lx_eventfd_take(serial.inputRoomDescriptor)
      } else if !read(&state) {
        terminal = state.terminal
      }
      deliver(&state)
      return terminal
    }
    lost?.failed()
  }

  /// False when the terminal is not to be read now.
  private func read(_ state: inout State) -> Bool {
    guard state.waiting.isEmpty else { return true }
    var bytes = [UInt8](repeating: 0, count: 1024)
    let got = unsafe bytes.withUnsafeMutableBytes { unsafe lx_read(descriptor, $0.baseAddress, $0.count) }
    if got == -Int(EAGAIN) || got == -Int(EINTR) { return true }
    guard got > 0 else {
      if let source = state.source { loop.unregister(source) }
      state.source = nil
      return got != -Int(EIO)
    }
    state.waiting = bytes[..<got]
    if let escape = state.waiting.firstIndex(of: Self.escape), state.terminal != nil {
      state.waiting = state.waiting[..<escape]
      onEscape()
    }
    return true
  }

  private func deliver(_ state: inout State) {
    let taken = serial.receive(state.waiting)
    state.waiting = state.waiting.dropFirst(taken)
    guard let source = state.source else { return }
    loop.setInterest(source, events: state.waiting.isEmpty ? EPOLLIN.rawValue : 0)
  }
}
