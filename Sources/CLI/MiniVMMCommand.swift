import ArgumentParser
import CLinux
import Devices
import Glibc
import GuestMemory
import MiniVMM

@main
struct MiniVMMCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "minivmm", abstract: "A minimal hypervisor on /dev/kvm.",
    discussion: """
      EXAMPLES:
        minivmm doctor
        minivmm run --kernel vmlinux --disk root.img --net tap=tap0 --cmdline "console=ttyS0 root=/dev/vda"
        minivmm pair --kernel vmlinux --net tap=tap0 --secondary-net tap=tap1 --control /run/first.sock
        minivmm status --control /run/first.sock
      Shell completions: minivmm --generate-completion-script bash > /etc/bash_completion.d/minivmm

      """ + ExitStatus.help,
    version: "0.1.0",
    subcommands: [
      RunCommand.self, PrimaryCommand.self, SecondaryCommand.self, PairCommand.self, StatusCommand.self,
      WatchCommand.self, CheckpointCommand.self, FailoverCommand.self, PauseCommand.self, ResumeCommand.self,
      StopCommand.self, SnapshotCommand.self, RestoreCommand.self, DoctorCommand.self,
    ])

  /// Every failure ends here: one line, and the exit code that goes with it.
  static func main() {
    lx_limit_arenas()
    do {
      var command = try parseAsRoot()
      try command.run()
    } catch let code as ExitCode {
      leave(code.rawValue)
    } catch {
      guard let failure = Failure(describing: error) else { exit(withError: error) }
      let line = Array("minivmm: \(failure.message)\n".utf8)
      lx_terminal_restore()
      _ = unsafe line.withUnsafeBytes { unsafe lx_write(2, $0.baseAddress, $0.count) }
      leave(failure.status.rawValue)
    }
  }

  private static func leave(_ code: Int32) -> Never {
    lx_terminal_restore()
    lx_flush_and_exit(code)
  }
}

extension Failure {
  /// The exit code for each kind of error; nil for what is the argument parser's.
  init?(describing error: any Error) {
    switch error {
    case let failure as Failure: self = failure
    case let error as KVMError: self.init("\(error)", Self.status(error))
    case let error as AssemblyError: self.init("\(error)", Self.status(error))
    case let error as MachineError: self.init("\(error)", Self.status(error))
    case let error as SeccompError: self.init("\(error)", .unavailable)
    case let error as NetBackendError: self.init("\(error)", Self.status(.card(error)))
    case let error as DiskError: self.init("\(error)", Self.status(.disk(error)))
    case let error as HostError: self.init("\(error); is the host out of memory or descriptors?", .osError)
    default: return nil
    }
  }

  private static func status(_ error: KVMError) -> ExitStatus {
    switch error {
    case .notPermitted: .noPermission
    default: .unavailable
    }
  }

  private static func status(_ error: MachineError) -> ExitStatus {
    switch error {
    case .kvm(let error): status(error)
    case .boot, .state, .differentShape, .missingCPUFeatures: .badData
    default: .osError
    }
  }

  private static func status(_ error: AssemblyError) -> ExitStatus {
    switch error {
    case .machine(let error): return status(error)
    case .disk(.busy), .card(.tapBusy): return .busy
    case .disk(.format): return .badData
    case .card(.tapNotPermitted), .card(.noTunDevice(errno: EACCES)), .card(.noTunDevice(errno: EPERM)):
      return .noPermission
    case .disk: return .noInput
    case .card, .seccomp, .memory(.noHugePages(_, _, _)): return .unavailable
    case .memory, .host, .tooManyDevices: return .osError
    }
  }
}
