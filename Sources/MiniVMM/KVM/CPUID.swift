internal import CKVM

/// What a guest is shown by CPUID: what the host's KVM supports, with the machine's own topology and frequencies.
enum CPUID {
  /// KVM's APIC timer counts at 1 GHz whatever the host's does.
  private static let apicBusHz: UInt32 = 1_000_000_000

  /// KVM_FEATURE_ASYNC_PF, _ASYNC_PF_VMEXIT, _ASYNC_PF_INT: a guest told of host page faults may have threads that wait for one
  /// when it is saved, so that KVM wakes them all whenever it is loaded; Linux then walks a table of 256 locks, each time.
  private static let asyncPageFaults: UInt32 = 1 << 4 | 1 << 10 | 1 << 14

  /// KVM_FEATURE_PV_UNHALT, _PV_SEND_IPI, _PV_SCHED_YIELD: what Linux does by hypercall. A KVM that interprets the guest's kernel
  /// replaces the VMCALL by itself and interprets it again, for ever: a Linux guest with four CPUs, which sent one interrupt to
  /// several of them, hung in __send_ipi_mask. The other two use hypercalls as well.
  private static let hypercallFeatures: UInt32 = 1 << 7 | 1 << 11 | 1 << 13

  /// The table for vCPU `index` of `cpus`.
  /// - Parameter hypercalls: whether they work: where KVM has a processor's VMX or SVM under it.
  static func table(
    supported: [kvm_cpuid_entry2], index: Int, cpus: Int, tscDeadline: Bool, tscKHz: UInt32, hypercalls: Bool
  ) -> [kvm_cpuid_entry2] {
    // Replaced below: topology and frequency leaves of the host would lie.
    var table = supported.filter { ![0x0b, 0x1f, 0x15, 0x16, 0x4000_0010].contains($0.function) }
    let apicID = UInt32(index)
    let coreBits = UInt32(cpus <= 1 ? 0 : (cpus - 1).bitWidth - (cpus - 1).leadingZeroBitCount)

    for position in table.indices {
      switch table[position].function {
      case 0: table[position].eax = max(table[position].eax, 0x15)
      case 1:
        // Intel SDM vol. 2A, CPUID leaf 1: EBX[31:24] initial APIC id, EBX[23:16] logical processors.
        table[position].ebx = table[position].ebx & 0x0000_ffff | apicID << 24 | UInt32(cpus) << 16
        let x2apic: UInt32 = 1 << 21
        let deadline: UInt32 = 1 << 24
        let hypervisor: UInt32 = 1 << 31
        table[position].ecx |= x2apic | hypervisor
        table[position].ecx = tscDeadline ? table[position].ecx | deadline : table[position].ecx & ~deadline
        let hyperThreading: UInt32 = 1 << 28
        table[position].edx = cpus > 1 ? table[position].edx | hyperThreading : table[position].edx & ~hyperThreading
      case 4:
        // EAX[31:26]: cores in the package, less one; EAX[25:14]: sharers of this cache. Caches are private here.
        guard table[position].eax & 0x1f != 0 else { break }
        table[position].eax = table[position].eax & 0x3fff | UInt32(cpus - 1) << 26
      case 0x4000_0000: table[position].eax = max(table[position].eax, 0x4000_0010)
      case 0x4000_0001: table[position].eax &= ~(asyncPageFaults | (hypercalls ? 0 : hypercallFeatures))
      case 0x8000_0008:
        // AMD APM vol. 3: ECX[7:0] cores less one, ECX[15:12] bits of the APIC id that number them.
        table[position].ecx = table[position].ecx & 0xffff_0f00 | UInt32(cpus - 1) | coreBits << 12
      case 0x8000_001e:
        table[position].eax = apicID
        table[position].ebx = apicID  // one thread a core
        table[position].ecx = 0  // one node
      default: break
      }
    }
    for leaf: UInt32 in [0x0b, 0x1f] where leaf == 0x0b || supported.contains(where: { $0.function == 0x1f }) {
      // Level 0: one thread a core. Level 1: the cores.
      table.append(subleaf(leaf, 0, eax: 0, ebx: 1, ecx: 1 << 8, edx: apicID))
      table.append(subleaf(leaf, 1, eax: coreBits, ebx: UInt32(cpus), ecx: 2 << 8 | 1, edx: apicID))
      table.append(subleaf(leaf, 2, eax: 0, ebx: 0, ecx: 2, edx: apicID))
    }
    // Leaf 0x15: TSC frequency = crystal (ECX) * EBX / EAX. The crystal drives the APIC timer too, so it has to be KVM's.
    table.append(entry(0x15, eax: apicBusHz / 1000, ebx: tscKHz, ecx: apicBusHz))
    // Leaf 0x40000010 (as VMware and QEMU have it): kHz of the TSC and of the APIC bus.
    table.append(entry(0x4000_0010, eax: tscKHz, ebx: apicBusHz / 1000))
    return table
  }

  private static func entry(
    _ function: UInt32, eax: UInt32 = 0, ebx: UInt32 = 0, ecx: UInt32 = 0, edx: UInt32 = 0
  ) -> kvm_cpuid_entry2 {
    var entry = kvm_cpuid_entry2()
    entry.function = function
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (eax, ebx, ecx, edx)
    return entry
  }

  private static func subleaf(
    _ function: UInt32, _ index: UInt32, eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32
  ) -> kvm_cpuid_entry2 {
    var result = entry(function, eax: eax, ebx: ebx, ecx: ecx, edx: edx)
    result.index = index
    result.flags = UInt32(KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
    return result
  }
}
