import ArgumentParser

/// Exit codes of `minivmm`, as the help and docs/commands.md list them.
enum ExitStatus: Int32 {
  /// The guest powered off, or the user ended it.
  case success = 0
  /// The guest asked for a reset (i8042, or triple fault).
  case guestReset = 10
  /// The guest said that it crashed (panic port).
  case guestCrash = 11
  /// KVM could not go on with the guest (KVM_EXIT_INTERNAL_ERROR and its kin).
  case kvmInternalError = 12
  /// A file's contents are not what they should be: kernel, snapshot, configuration.
  case badData = 65
  /// A file that should be read is missing or not readable.
  case noInput = 66
  /// This host lacks something: KVM, a capability, a tap.
  case unavailable = 69
  /// A system call failed that should not.
  case osError = 71
  /// A file that should be written can't be.
  case cannotCreate = 73
  /// Something is in use: a disk, a tap.
  case busy = 75
  /// The other end of a control socket refused or broke off.
  case protocolError = 76
  /// A permission is missing.
  case noPermission = 77
  /// A thread made a system call its seccomp filter denies.
  case seccompViolation = 159

  static let help = """
    EXIT CODES: 0 guest powered off or ended by the user, 10 guest reset, 11 guest crash, 12 KVM internal error, \
    64 bad command line, 65 bad file contents, 66 file missing or unreadable, 69 host lacks something, 71 system error, \
    73 cannot write, 75 in use, 76 control socket refused, 77 not permitted, 159 seccomp violation.
    """
}

/// A failure for the user: one line with cause and cure, and an exit code.
struct Failure: Error, CustomStringConvertible {
  let message: String
  let status: ExitStatus

  init(_ message: String, _ status: ExitStatus) {
    self.message = message
    self.status = status
  }

  var description: String { message }
}
