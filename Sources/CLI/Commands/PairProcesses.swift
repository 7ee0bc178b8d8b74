import ArgumentParser
import CLinux
import Devices
import Glibc
import Synchronization

/// The two processes of `minivmm pair`. Main thread.
final class PairProcesses: EventHandler {
  /// Where a child finds the key: its descriptor 3.
  static let key = "/proc/self/fd/3"
  /// How long a secondary may take to take over, once its primary has gone, in nanoseconds.
  private static let takeoverTime: UInt64 = 3_000_000_000

  private enum Side: UInt32 { case primary, secondary }
  private enum Tag { static let output: UInt32 = 0, end: UInt32 = 2, timer: UInt32 = 4 }

  private struct Child {
    var process: CInt
    /// The reading end of its standard error.
    var errors: CInt
    var source: EventLoop.Source?
    var pidfd: CInt
    var line: [UInt8] = []
    var code: CInt?
  }

  private struct State {
    var children: [Side: Child] = [:]
    var tookOver = false
  }

  private let main: MainLoop
  private let keyFile: CInt
  private let arguments: (secondary: [String], primary: [String])
  private let state = Mutex(State())
  private let timer: CInt

  init(_ main: MainLoop, key: CInt, secondary: [String], primary: [String]) throws {
    self.main = main
    keyFile = key
    arguments = (secondary, primary)
    timer = lx_timerfd()
    guard timer >= 0 else { throw HostError(operation: "timerfd_create", errno: -timer) }
    _ = try main.events.register(timer, events: EPOLLIN.rawValue, handler: self, tag: Tag.timer)
  }

  /// Runs both to the end; the exit code of the guest that served last, or success when the user ended it.
  func run() throws -> ExitCode {
    try start(.secondary, arguments.secondary)
    main.run()
    let (tookOver, isWanted) = state.withLock { state in
      (state.tookOver, state.children.values.contains { $0.code == nil && !isSuperfluous($0, state) })
    }
    endChildren()
    let (primary, secondary) = state.withLock { ($0.children[.primary]?.code, $0.children[.secondary]?.code) }
    if isWanted { return ExitCode(ExitStatus.success.rawValue) }
    return ExitCode((tookOver ? secondary : primary ?? secondary) ?? ExitStatus.osError.rawValue)
  }

  /// A secondary whose primary has ended, and that did not take over.
  private func isSuperfluous(_ child: Child, _ state: State) -> Bool {
    child.process == state.children[.secondary]?.process && state.children[.primary]?.code != nil && !state.tookOver
  }

  // MARK: Starting and ending

  private func start(_ side: Side, _ arguments: [String]) throws {
    var ends: [CInt] = [-1, -1]
    let made = unsafe ends.withUnsafeMutableBufferPointer { unsafe lx_pipe($0.baseAddress) }
    guard made == 0 else { throw HostError(operation: "pipe", errno: -made) }
    lx_set_nonblocking(ends[0], 1)
    let words = ["minivmm"] + arguments + ["--parent", "\(getpid())"]
    var pointers = unsafe words.map { unsafe strdup($0) } + [nil]
    let process = unsafe lx_spawn_self(&pointers, ends[1], keyFile)
    for index in unsafe pointers.indices { unsafe free(pointers[index]) }
    lx_close(ends[1])
    guard process >= 0 else { throw HostError(operation: "posix_spawn", errno: -process) }
    let pidfd = lx_pidfd(process)
    guard pidfd >= 0 else {
      lx_signal_process(process, SIGKILL)
      throw HostError(operation: "pidfd_open", errno: -pidfd)
    }
    let source = try main.events.register(
      ends[0], events: EPOLLIN.rawValue, handler: self, tag: Tag.output + side.rawValue)
    _ = try main.events.register(pidfd, events: EPOLLIN.rawValue, handler: self, tag: Tag.end + side.rawValue)
    state.withLock {
      $0.children[side] = Child(process: process, errors: ends[0], source: source, pidfd: pidfd)
    }
  }

  /// The secondary first, so that it does not take over.
  private func endChildren() {
    let children = state.withLock { $0.children }
    let order = [Side.secondary, .primary].compactMap { side in children[side].map { (side, $0) } }
    for (_, child) in order where child.code == nil { lx_signal_process(child.process, SIGTERM) }
    for (side, child) in order where child.code == nil {
      HostThread.waitReadable(child.pidfd, timeoutMilliseconds: 5000)
      var code = lx_exit_code(child.process)
      if code == -EAGAIN {
        lx_signal_process(child.process, SIGKILL)
        HostThread.waitReadable(child.pidfd, timeoutMilliseconds: 5000)
        code = lx_exit_code(child.process)
      }
      state.withLock { $0.children[side]?.code = code }
    }
    for (side, _) in order { passOn(side) }
  }

  // MARK: Events

  func ready(tag: UInt32, events: UInt32) {
    switch tag {
    case Tag.timer:
      _ = lx_eventfd_take(timer)
      if !state.withLock({ $0.tookOver }) { main.stop() }
    case Tag.end...:
      if let side = Side(rawValue: tag - Tag.end) { ended(side) }
    default:
      if let side = Side(rawValue: tag - Tag.output) { passOn(side) }
    }
  }

  private func ended(_ side: Side) {
    passOn(side)
    passOn(.secondary)
    let isOver = state.withLock { state in
      guard var child = state.children[side], child.code == nil else { return false }
      child.code = lx_exit_code(child.process)
      lx_close(child.pidfd)
      state.children[side] = child
      // A primary that was not killed leaves nothing to take over; if it was fenced, that has been said before.
      let isOrderly = side == .primary && !state.tookOver && (child.code ?? 0) < 128
      return isOrderly || state.children.values.allSatisfy { $0.code != nil }
    }
    if isOver { return main.stop() }
    // What is left of the pair is a guest that serves, or a secondary that may do so soon.
    if side == .primary { lx_timerfd_arm(timer, Self.takeoverTime) }
  }

  /// Passes on whole lines of a child's standard error, with its name, and hears what they mean for us.
  private func passOn(_ side: Side) {
    var lines: [[UInt8]] = []
    state.withLock { state in
      guard var child = state.children[side] else { return }
      while true {
        var bytes = [UInt8](repeating: 0, count: 4096)
        let got = unsafe bytes.withUnsafeMutableBytes { unsafe lx_read(child.errors, $0.baseAddress, $0.count) }
        if got == 0, let source = child.source {
          main.events.unregister(source)
          child.source = nil
        }
        guard got > 0 else { break }
        child.line += bytes[..<got]
      }
      while let end = child.line.firstIndex(of: UInt8(ascii: "\n")) {
        lines.append(Array(child.line[..<end]))
        child.line.removeSubrange(...end)
      }
      state.children[side] = child
    }
    for line in lines {
      let text = String(decoding: line, as: UTF8.self)
      write(2, "\(side): \(text)\n")
      hear(text, from: side)
    }
  }

  private func hear(_ line: String, from side: Side) {
    guard side == .secondary else { return }
    if line.hasPrefix("minivmm: pair: now takingOver") || line.hasPrefix("minivmm: pair: now alone") {
      state.withLock { $0.tookOver = true }
    }
    let waiting = "minivmm: pair: waiting for a primary at "
    guard line.hasPrefix(waiting), state.withLock({ $0.children[.primary] == nil }) else { return }
    do { try start(.primary, arguments.primary + ["--replicate", String(line.dropFirst(waiting.count))]) } catch {
      tell("cannot start the primary: \(error)")
      main.stop()
    }
  }

  private func write(_ descriptor: CInt, _ text: String) {
    let bytes = Array(text.utf8)
    _ = unsafe bytes.withUnsafeBytes { unsafe lx_write(descriptor, $0.baseAddress, $0.count) }
  }
}
