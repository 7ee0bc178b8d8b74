internal import CKVM

extension Machine {
  private static let miscEnable: UInt32 = 0x1a0
  private static let mtrrDefaultType: UInt32 = 0x2ff

  /// The vCPUs with their CPUID; all but the first wait for INIT and SIPI, as the irqchip has it.
  static func makeVCPUs(_ count: Int, _ machine: VirtualMachine, _ kvm: KVMSystem) throws(KVMError) -> [VirtualCPU] {
    let supported = try kvm.supportedCPUID()
    try machine.hidePMU(kvm, isAMD: CPUID.isAMD(supported))
    let tscDeadline = kvm.capability(.tscDeadline) > 0
    let hypercalls = ckvm_has_virtualization() != 0
    var vcpus: [VirtualCPU] = []
    for index in 0..<count {
      let vcpu = try VirtualCPU(machine, kvm, index: index)
      try vcpu.setCPUID(
        CPUID.table(
          supported: supported, index: index,
          machine: CPUID.Machine(
            cpus: count, tscDeadline: tscDeadline, tscKHz: try vcpu.tscFrequency(), hypercalls: hypercalls)))
      // What firmware would have set: fast string operations, no branch tracing and no event sampling; all memory write-back. Hosts that lack a register lose nothing.
      for (msr, value): (UInt32, UInt64) in [(miscEnable, 1 | 1 << 11 | 1 << 12), (mtrrDefaultType, 1 << 11 | 6)] {
        try? vcpu.setMSRs([kvm_msr_entry(index: msr, reserved: 0, data: value)])
      }
      vcpus.append(vcpu)
    }
    return vcpus
  }
}
