internal import CLinux
internal import Glibc

/// Why KVM could not do what the machine needs.
public enum KVMError: Error, Equatable, Sendable {
  /// There is no /dev/kvm.
  case noDevice
  /// /dev/kvm is there, but not for this user; the group that owns it, if it has a name.
  case notPermitted(group: String?)
  case apiVersion(Int32)
  /// A capability the machine can't do without.
  case missingCapability(String)
  /// 1 to ``Machine/maximumCPUs``, and no more than the host's KVM offers.
  case cpuCount(requested: Int, limit: Int)
  /// A system call or ioctl failed.
  case failed(operation: String, errno: Int32)
  /// KVM_GET_MSRS stopped at this register, which it has read before.
  case registerUnreadable(msr: UInt32)
  /// KVM_SET_MSRS stopped at this register.
  case registerRefused(msr: UInt32)
  /// KVM wrote more into a dirty ring than fits: which pages are dirty is no longer known.
  case dirtyRingOverrun
  /// kHz of time stamp counters; this host can't scale its own to the saved rate.
  case tscFrequency(saved: UInt32, here: UInt32)
}

extension KVMError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .noDevice:
      "/dev/kvm does not exist; load the kvm_intel or kvm_amd module, or switch virtualisation on in the firmware"
    case .notPermitted(let group):
      "no permission to open /dev/kvm; "
        + (group.map { "add this user to group \($0) (sudo usermod -aG \($0) $USER) and log in again" }
          ?? "make it readable and writable for this user")
    case .apiVersion(let found): "this kernel's KVM has API version \(found); 12 is needed (Linux 2.6.22 or later)"
    case .missingCapability(let name): "this kernel's KVM lacks \(name); a kernel of 5.13 or later has it"
    case .cpuCount(let requested, let limit): "\(requested) CPUs asked for; 1 to \(limit) are possible here"
    case .failed(let operation, let error): "\(operation): \(unsafe String(cString: lx_strerror(error)))"
    case .dirtyRingOverrun: "KVM overran the dirty ring; use the dirty bitmap on this host"
    case .tscFrequency(let saved, let here):
      "the saved guest's time stamp counter runs at \(saved) kHz, this host's at \(here), and it can't scale it; restore on a host of the same rate"
    case .registerUnreadable(let msr):
      "KVM no longer reads model-specific register 0x\(String(msr, radix: 16)) of this guest, so its state can't be saved; "
        + "restart the guest, and report this with the output of uname -a"
    case .registerRefused(let msr): "KVM refused the value of model-specific register 0x\(String(msr, radix: 16))"
    }
  }
}

extension KVMError {
  /// The reason /dev/kvm could not be opened.
  static func opening(_ path: String, errno error: Int32) -> KVMError {
    switch error {
    case ENOENT, ENODEV, ENXIO: return .noDevice
    case EACCES, EPERM:
      var status = stat()
      guard unsafe stat(path, &status) == 0, let entry = unsafe getgrgid(status.st_gid) else {
        return .notPermitted(group: nil)
      }
      return .notPermitted(group: unsafe String(cString: entry.pointee.gr_name))
    default: return .failed(operation: "open of \(path)", errno: error)
    }
  }
}
