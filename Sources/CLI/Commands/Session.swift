import ArgumentParser
import CLinux
import Devices
import FoundationEssentials
import Glibc
import MiniVMM
import Pair
import Synchronization

/// One machine from the command line's point of view: console, signals, control socket, and what its end means.
/// The main thread controls the machine until the end.
final class Session: Sendable {
  let assembled: AssembledMachine
  private let settings: MachineSettings
  private let main: MainLoop
  /// Nil where the guest has no console.
  private let sink: SwitchedSink?
  /// The user has had advice.
  private let isTold = Atomic(false)

  /// Opens everything; nothing runs yet.
  convenience init(_ settings: MachineSettings) throws {
    try self.init(
      settings, main: MainLoop(), sink: SwitchedSink.open(settings.console, isOn: true), kvm: KVMSystem())
  }

  /// - Parameter sink: turned on by ``attach(start:)``.
  init(_ settings: MachineSettings, main: MainLoop, sink: SwitchedSink?, kvm: KVMSystem) throws {
    var description = settings.description
    description.console = sink
    description.tell = tell
    self.settings = settings
    self.main = main
    self.sink = sink
    assembled = try AssembledMachine(description, kvm: kvm)
    // A kernel that panics may stay there for ever: its user is told at once.
    sink?.watch { [weak self] console in
      guard let self, !assembled.transports.contains(where: \.wasDriven) else { return true }
      guard BootAdvice.lacksRoot(console) else { return false }
      advise(console, end: nil)
      return true
    }
  }

  /// Says what a guest lacks that did not get far, once.
  private func advise(_ console: String, end: MachineEnd?) {
    let devices = assembled.transports.map { (name: $0.name, wasDriven: $0.wasDriven) }
    guard let advice = BootAdvice.text(console: console, devices: devices, end: end),
      !isTold.exchange(true, ordering: .relaxed)
    else { return }
    tell(BootAdvice.report(advice, console: console))
  }

  func boot(_ source: BootSource, kernelPath: String) throws {
    do throws(MachineError) { try assembled.machine.load(source) } catch {
      guard case .boot(let problem) = error else { throw error }
      throw Failure("kernel \(kernelPath): \(problem)", .badData)
    }
  }

  /// Runs the machine to its end; what that end means for the process.
  /// - Parameters:
  ///   - pair: the guest's side of a pair, if it is one of a pair.
  ///   - started: called once it runs.
  func run(pair: (any PairSide)? = nil, started: () throws -> Void = {}) throws -> ExitCode {
    let controller = controller(pair)
    let server = try settings.control.map { path in
      try ControlServer(path: path, loop: main.events) { controller.answer($0, descriptor: $1) }
    }
    defer { server?.close() }
    try attach {
      try assembled.machine.start()
      try started()
    }
    main.run()
    return try end(pair?.turn)
  }

  /// Answers for this machine. Main thread.
  func controller(_ pair: (any PairSide)?) -> Controller {
    Controller(assembled, pair: pair, stop: { [main] in main.stop() })
  }

  /// Gives the machine the console and the process's care, and the main thread its filter.
  /// - Parameter start: lets the machine run, where it does not yet.
  func attach(start: () throws -> Void = {}) throws {
    try main.end(on: assembled.machine.endDescriptor)
    sink?.turnOn()
    if settings.console == .stdio {
      _ = try ConsoleInput(serial: assembled.serial, main: main)
    }
    if let user = settings.user { try Self.dropPrivileges(to: user) }
    try start()
    // What only the start needed goes back to the host once the threads have got to their loops.
    HostThread.waitReadable(assembled.machine.endDescriptor, timeoutMilliseconds: 20)
    lx_release_program_pages()
    try assembled.filters.load(.control)
  }

  /// Ends the machine, if it has not ended by itself; what its end means.
  /// - Parameter turn: whoever else pauses the machine waits for it.
  func end(_ turn: MachineTurn? = nil) throws -> ExitCode {
    turn?.withTurn { assembled.shutDown() } ?? assembled.shutDown()
    assembled.serial.finish()
    lx_terminal_restore()
    let end = assembled.machine.end ?? .stopped
    advise(sink?.last ?? "", end: end)
    let registers = end.registers.map { "\n  \($0)" } ?? ""
    switch end {
    case .poweroff, .stopped: return ExitCode(ExitStatus.success.rawValue)
    case .reset: throw Failure("\(end)", .guestReset)
    case .tripleFault: throw Failure("\(end)\(registers)", .guestReset)
    case .guestCrash: throw Failure("\(end); its console has the reason", .guestCrash)
    case .internalError:
      throw Failure("\(end); see `minivmm doctor` for what this host's KVM can't do\(registers)", .kvmInternalError)
    }
  }

  /// For a process whose threads have no filters yet: each of them changes its user.
  static func dropPrivileges(to user: String) throws {
    let result = unsafe lx_drop_privileges(user)
    guard result < 0 else { return try ChildOptions.keep() }
    if result == -ENOENT {
      throw Failure("there is no user \(user); give a name from /etc/passwd or a number", .noPermission)
    }
    throw Failure(
      "cannot become user \(user): \(unsafe String(cString: lx_strerror(-result))); start as root or leave out --user",
      .noPermission)
  }
}
