/// Why a machine stopped for good. The first cause counts.
public enum MachineEnd: Equatable, Sendable {
  /// The guest switched itself off.
  case poweroff
  case reset(ResetCause)
  /// The guest could not even handle its exceptions; the registers it had then, where KVM told them.
  case tripleFault(RegisterDump?)
  case guestCrash(CrashCause)
  /// KVM could not go on with the guest; the VMM itself is fine.
  case internalError(InternalError)
  /// ``Machine/stop()``.
  case stopped

  /// Whether it is part of what the guest did, so that the guest can be put back to before it. Pages that went unrecorded
  /// can't be put back.
  var isTheGuests: Bool {
    switch self {
    case .stopped: false
    case .internalError(let error): error.kind != .dirtyRingOverrun
    default: true
    }
  }

  public enum ResetCause: String, Sendable { case keyboardController, systemEvent }
  public enum CrashCause: String, Sendable { case panicNotifier, systemEvent }
}

/// Where a vCPU was when KVM gave up.
public struct InternalError: Equatable, Sendable {
  public enum Kind: Equatable, Sendable {
    /// KVM_EXIT_INTERNAL_ERROR; suberror 1 is an instruction that the emulator doesn't know.
    case internalError(suberror: UInt32)
    case entryFailed(hardwareReason: UInt64)
    /// KVM_RUN itself failed.
    case runFailed(errno: Int32)
    /// An exit that this VMM doesn't handle.
    case unexpectedExit(reason: Int32)
    case badSystemEvent(type: UInt32)
    /// Pages written by the guest went unrecorded; see ``DirtyTracking/ring(entries:)``.
    case dirtyRingOverrun
  }

  public let kind: Kind
  public let vcpu: Int
  /// Nil when they can't be read.
  public let registers: RegisterDump?
  /// What KVM adds to a KVM_EXIT_INTERNAL_ERROR, at most 16 numbers.
  public var data: [UInt64] = []
}

extension MachineEnd {
  /// The registers of a guest that could not go on.
  public var registers: RegisterDump? {
    switch self {
    case .tripleFault(let registers): registers
    case .internalError(let error): error.registers
    default: nil
    }
  }
}

extension MachineEnd: CustomStringConvertible {
  public var description: String {
    switch self {
    case .poweroff: "the guest powered off"
    case .reset(.keyboardController): "the guest asked for a reset"
    case .tripleFault: "the guest reset itself by a triple fault"
    case .reset(.systemEvent): "the guest asked for a reset (system event)"
    case .guestCrash(.panicNotifier): "the guest reported a panic"
    case .guestCrash(.systemEvent): "the guest reported a crash (system event)"
    case .internalError(let error): error.description
    case .stopped: "the machine was stopped"
    }
  }
}

extension InternalError: CustomStringConvertible {
  public var description: String {
    let what =
      switch kind {
      case .internalError(suberror: 1): "KVM can't emulate an instruction of the guest"
      case .internalError(let suberror): "KVM internal error, suberror \(suberror)"
      case .entryFailed(let reason): "the CPU refused to enter the guest, hardware reason \(hex(reason))"
      case .runFailed(let errno): "KVM_RUN failed, errno \(errno)"
      case .unexpectedExit(let reason): "KVM exit \(reason), which this VMM does not know"
      case .dirtyRingOverrun: "KVM overran the dirty ring (use the dirty bitmap on this host)"
      case .badSystemEvent(let type): "KVM system event \(type), which this VMM does not know"
      }
    let numbers = data.isEmpty ? "" : ", data " + data.map(hex).joined(separator: " ")
    return "\(what) (vcpu\(vcpu)\(numbers))"
  }
}
