import ArgumentParser
import CLinux
import Devices
import FoundationEssentials
import Glibc
import MiniVMM

/// One machine from the command line's point of view: console, signals, control socket, and what its end means.
/// The thread that makes it controls the machine until the end.
final class Session: Sendable {
  let assembled: AssembledMachine
  private let settings: MachineSettings
  private let loop: EventLoop

  /// Opens everything; nothing runs yet.
  init(_ settings: MachineSettings) throws {
    var description = settings.description
    switch settings.console {
    case .none: break
    case .stdio: description.console = DescriptorSink(1)
    case .file(let path):
      let file = unsafe lx_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
      guard file >= 0 else {
        throw Failure(
          "cannot write console file \(path): \(unsafe String(cString: lx_strerror(-file))); choose another path",
          .cannotCreate)
      }
      description.console = DescriptorSink(file)
    }
    self.settings = settings
    loop = try EventLoop()
    lx_ignore_write_signals()
    // Before any thread starts, so that all inherit the mask.
    let signals = lx_termination_descriptor()
    guard signals >= 0 else { throw HostError(operation: "signalfd", errno: -signals) }
    assembled = try AssembledMachine(description, kvm: KVMSystem())
    let ending = LoopEnd(loop)
    _ = try loop.register(signals, events: EPOLLIN.rawValue, handler: ending, tag: 0)
    _ = try loop.register(assembled.machine.endDescriptor, events: EPOLLIN.rawValue, handler: ending, tag: 1)
  }

  func boot(_ source: BootSource, kernelPath: String) throws {
    do throws(MachineError) { try assembled.machine.load(source) } catch {
      guard case .boot(let problem) = error else { throw error }
      throw Failure("kernel \(kernelPath): \(problem)", .badData)
    }
  }

  /// Runs the machine to its end; what that end means for the process.
  /// - Parameters:
  ///   - isStarted: it runs already: a secondary's that has taken over.
  ///   - started: called once it runs.
  func run(isStarted: Bool = false, started: () throws -> Void = {}) throws -> ExitCode {
    var server: ControlServer?
    if let path = settings.control {
      let controller = Controller(assembled, stop: { [loop] in loop.stop() })
      server = try ControlServer(path: path, loop: loop) { controller.answer($0, descriptor: $1) }
    }
    defer { server?.close() }
    if settings.console == .stdio {
      _ = try ConsoleInput(serial: assembled.serial, loop: loop, onEscape: { [loop] in loop.stop() })
    }
    if let user = settings.user { try dropPrivileges(to: user) }
    if !isStarted { try assembled.machine.start() }
    try started()
    // What only the start needed goes back to the host once the threads have got to their loops.
    HostThread.waitReadable(assembled.machine.endDescriptor, timeoutMilliseconds: 20)
    lx_release_program_pages()
    try assembled.filters.load(.control)
    loop.run()
    assembled.shutDown()
    assembled.serial.finish()
    lx_terminal_restore()
    let end = assembled.machine.end ?? .stopped
    switch end {
    case .poweroff, .stopped: return ExitCode(ExitStatus.success.rawValue)
    case .reset: throw Failure("\(end)", .guestReset)
    case .guestCrash: throw Failure("\(end); its console has the reason", .guestCrash)
    case .internalError:
      throw Failure("\(end); see `minivmm doctor` for what this host's KVM can't do", .kvmInternalError)
    }
  }

  private func dropPrivileges(to user: String) throws {
    let result = unsafe lx_drop_privileges(user)
    guard result < 0 else { return }
    if result == -ENOENT {
      throw Failure("there is no user \(user); give a name from /etc/passwd or a number", .noPermission)
    }
    throw Failure(
      "cannot become user \(user): \(unsafe String(cString: lx_strerror(-result))); start as root or leave out --user",
      .noPermission)
  }

  /// Ends the control loop on a signal or at the machine's end.
  private final class LoopEnd: EventHandler {
    private let loop: EventLoop
    init(_ loop: EventLoop) { self.loop = loop }
    func ready(tag: UInt32, events: UInt32) { loop.stop() }
  }
}
