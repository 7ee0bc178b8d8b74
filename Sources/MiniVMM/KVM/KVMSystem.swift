internal import CKVM
internal import CLinux
internal import Glibc

/// /dev/kvm, opened and found fit.
public final class KVMSystem: Sendable {
  let descriptor: Descriptor
  /// Bytes of a vCPU's mapping: `kvm_run` and what the kernel keeps behind it.
  let runSize: Int

  /// - Throws: ``KVMError`` that names the cause and its cure, a missing capability included.
  public init(path: String = "/dev/kvm") throws(KVMError) {
    let fd = unsafe lx_open(path, O_RDWR, 0)
    guard fd >= 0 else { throw .opening(path, errno: -fd) }
    let descriptor = Descriptor(owning: fd)
    let version = try descriptor.call(.getAPIVersion)
    guard version == 12 else { throw .apiVersion(version) }
    for needed in Capability.needed where ckvm_ioctl(fd, .checkExtension, UInt(needed.number)) <= 0 {
      throw .missingCapability(needed.name)
    }
    runSize = Int(try descriptor.call(.getVCPUMmapSize))
    self.descriptor = descriptor
  }

  /// The value KVM_CHECK_EXTENSION gives; 0 when the capability is absent.
  func capability(_ capability: Capability) -> Int {
    max(0, Int(ckvm_ioctl(descriptor.raw, .checkExtension, UInt(capability.number))))
  }

  /// CPUID as this host's KVM can show it to a guest.
  func supportedCPUID() throws(KVMError) -> [kvm_cpuid_entry2] {
    try descriptor.array(.getSupportedCPUID, [kvm_cpuid_entry2](repeating: kvm_cpuid_entry2(), count: 256)).entries
  }

  /// Bytes of a vCPU's XSAVE area.
  var xsaveSize: Int { max(4096, capability(.xsave2)) }

  /// Model-specific registers that make up a vCPU's state.
  func msrIndexList() throws(KVMError) -> [UInt32] {
    try descriptor.array(.getMSRIndexList, headerSize: 4, [UInt32](repeating: 0, count: 1024)).entries
  }
}
