public import Devices
public import GuestMemory
public import StateCodec

/// Why a machine could not be made, loaded, saved or restored.
public enum MachineError: Error, Equatable, Sendable {
  case kvm(KVMError)
  case boot(BootError)
  case host(HostError)
  case state(StateError)
  case memory(GuestMemoryError)
  /// Two devices answer the same port.
  case portTaken(UInt64)
  /// Two devices have the same name.
  case duplicateDevice(String)
  /// An operation that does not fit what the machine is doing, such as a save while it runs.
  case wrongPhase(String)
  /// The saved machine is of another shape.
  case differentShape(what: String, saved: String, here: String)
  /// The saved machine's guest has seen CPU features that this host lacks.
  case missingCPUFeatures(leaf: UInt32, register: String, bits: UInt32)
}

extension MachineError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .kvm(let error): error.description
    case .boot(let error): error.description
    case .host(let error): error.description
    case .state(let error): error.description
    case .memory(let error): error.description
    case .portTaken(let port): "port \(hex(port)) is taken by two devices"
    case .duplicateDevice(let name): "two devices are named \(name)"
    case .wrongPhase(let why): why
    case .differentShape(let what, let saved, let here):
      "the saved machine has \(what) \(saved), this one \(here); start this one with the same options"
    case .missingCPUFeatures(let leaf, let register, let bits):
      "the saved machine's guest uses CPU features this host lacks (CPUID \(hex(UInt64(leaf))) \(register) bits \(hex(UInt64(bits)))); restore it on a host like the first"
    }
  }
}
