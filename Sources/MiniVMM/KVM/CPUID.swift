internal import CKVM

/// What a guest is shown by CPUID: what the host's KVM supports, without what this VMM does not give, with the machine's own
/// topology, caches and frequencies. Pure: the same input gives the same table on every host.
enum CPUID {
  /// What the table depends on, besides KVM's.
  struct Machine {
    var cpus: Int
    var tscDeadline: Bool
    var tscKHz: UInt32
    /// Whether they work: where KVM has a processor's VMX or SVM under it.
    var hypercalls: Bool
  }

  /// KVM's APIC timer counts at 1 GHz whatever the host's does.
  private static let apicBusHz: UInt32 = 1_000_000_000

  /// KVM_FEATURE_ASYNC_PF, _ASYNC_PF_VMEXIT, _ASYNC_PF_INT: a guest told of host page faults may have threads that wait for one
  /// when it is saved, so that KVM wakes them all whenever it is loaded; Linux then walks a table of 256 locks, each time.
  private static let asyncPageFaults: UInt32 = 1 << 4 | 1 << 10 | 1 << 14

  /// KVM_FEATURE_PV_UNHALT, _PV_SEND_IPI, _PV_SCHED_YIELD: what Linux does by hypercall. A KVM that interprets the guest's kernel
  /// replaces the VMCALL by itself and interprets it again, for ever: a Linux guest with four CPUs, which sent one interrupt to
  /// several of them, hung in __send_ipi_mask. The other two use hypercalls as well.
  private static let hypercallFeatures: UInt32 = 1 << 7 | 1 << 11 | 1 << 13

  /// Leaves that no guest is shown. Their reasons are those of ``hiddenBits``; the last row is replaced by the machine's own, because
  /// topology and frequency leaves of the host would lie.
  private static let hiddenLeaves: Set<UInt32> = [
    0x0a, 0x23, 0x8000_0022,  // PMU
    0x12,  // SGX
    0x1d, 0x1e,  // AMX
    0x8000_000a, 0x8000_001f,  // SVM; SEV, for guests whose memory is encrypted
    0x0b, 0x1f, 0x15, 0x16, 0x4000_0010, 0x8000_0026,
  ]

  /// Feature bits that no guest is shown (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E):
  /// - nested virtualisation (VMX, SMX, SVM): its state is not saved;
  /// - a PMU (PDCM, DS, DTES64, PerfCtrExtCore, -NB, -LLC, ArchPerfmonExt): hosts of a pair have different counters, each of which
  ///   would lengthen each checkpoint, and KVM on a host without one offers counters that do not count;
  /// - AMX (and XFD, which only AMX uses): XTILEDATA is 8 KiB more in each saved vCPU, and kernels before 6.4 offer it to processes
  ///   that may not use it;
  /// - SGX, whose protected memory guests don't have; HYBRID: a vCPU runs on cores of all types.
  private static let hiddenBits: [(leaf: UInt32, subleaf: UInt32, eax: UInt32, ebx: UInt32, ecx: UInt32, edx: UInt32)] =
    [
      (1, 0, 0, 0, 1 << 2 | 1 << 5 | 1 << 6 | 1 << 15, 1 << 21),
      (7, 0, 0, 1 << 2, 1 << 30, 1 << 15 | 1 << 22 | 1 << 24 | 1 << 25),
      (7, 1, 1 << 8 | 1 << 21, 0, 0, 1 << 8),
      (0xd, 0, 1 << 17 | 1 << 18, 0, 0, 0),
      (0xd, 1, 1 << 4, 0, 0, 0),
      (0x8000_0001, 0, 0, 0, 1 << 2 | 1 << 23 | 1 << 24 | 1 << 28, 0),
    ]

  /// The table for vCPU `index`.
  static func table(supported: [kvm_cpuid_entry2], index: Int, machine: Machine) -> [kvm_cpuid_entry2] {
    var table = supported.filter {
      !hiddenLeaves.contains($0.function) && !($0.function == 0xd && ($0.index == 17 || $0.index == 18))
    }
    for position in table.indices {
      for hidden in hiddenBits where hidden.leaf == table[position].function && hidden.subleaf == table[position].index
      {
        table[position].eax &= ~hidden.eax
        table[position].ebx &= ~hidden.ebx
        table[position].ecx &= ~hidden.ecx
        table[position].edx &= ~hidden.edx
      }
    }
    let isAMD = isAMD(supported)
    let (cpus, apicID) = (UInt32(machine.cpus), UInt32(index))
    let coreBits = UInt32(cpus <= 1 ? 0 : (cpus - 1).bitWidth - (cpus - 1).leadingZeroBitCount)
    /// As many APIC ids as the cores take up, less one.
    let lastID = UInt32(1) << coreBits - 1

    for position in table.indices {
      switch (table[position].function, table[position].index) {
      case (0, _): table[position].eax = max(table[position].eax, 0x15)
      case (1, _):
        // EBX[31:24] initial APIC id; EBX[23:16] APIC ids of the package on Intel, logical processors on AMD.
        table[position].ebx = table[position].ebx & 0x0000_ffff | apicID << 24 | (isAMD ? cpus : lastID + 1) << 16
        let x2apic: UInt32 = 1 << 21
        let deadline: UInt32 = 1 << 24
        let hypervisor: UInt32 = 1 << 31
        table[position].ecx |= x2apic | hypervisor
        table[position].ecx =
          machine.tscDeadline ? table[position].ecx | deadline : table[position].ecx & ~deadline
        let hyperThreading: UInt32 = 1 << 28
        table[position].edx = cpus > 1 ? table[position].edx | hyperThreading : table[position].edx & ~hyperThreading
      case (4, _), (0x8000_001d, _):
        // EAX[7:5]: level; EAX[25:14]: APIC ids that share this cache, less one: all those of the last level, so that Linux takes
        // the vCPUs for neighbours, one of each other. EAX[31:26], Intel only: APIC ids of cores in the package, less one.
        guard table[position].eax & 0x1f != 0 else { break }
        let leaf = table[position].function
        let last = supported.filter { $0.function == leaf && $0.eax & 0x1f != 0 }.map { $0.eax >> 5 & 7 }.max() ?? 0
        let level = table[position].eax >> 5 & 7
        let sharers = level > 1 && level == last ? lastID : 0
        table[position].eax = table[position].eax & 0x3fff | sharers << 14 | (leaf == 4 ? lastID << 26 : 0)
      case (0xd, 0):
        // ECX: bytes of all components that are left. EBX: of those that are on, x87 and SSE after a reset; KVM keeps it up to date.
        let features = table[position].eax
        table[position].ecx = supported.reduce(576) { size, component in
          guard component.function == 0xd, (2..<32).contains(component.index), features >> component.index & 1 == 1
          else {
            return size
          }
          return max(size, component.eax + component.ebx)
        }
        table[position].ebx = 576
      case (0xd, 1): table[position].ebx = table[position].eax & 0xa == 0 ? 0 : 576
      case (0x4000_0000, _): table[position].eax = max(table[position].eax, 0x4000_0010)
      case (0x4000_0001, _):
        table[position].eax &= ~(asyncPageFaults | (machine.hypercalls ? 0 : hypercallFeatures))
      case (0x8000_0001, _) where isAMD:
        // CmpLegacy: with HTT, that leaf 1 counts cores and not threads.
        let coresOnly: UInt32 = 1 << 1
        table[position].ecx = cpus > 1 ? table[position].ecx | coresOnly : table[position].ecx & ~coresOnly
      case (0x8000_0008, _):
        // ECX[7:0] cores less one, ECX[15:12] bits of the APIC id that number them.
        table[position].ecx = table[position].ecx & 0xffff_0f00 | cpus - 1 | coreBits << 12
      case (0x8000_001e, _):
        table[position].eax = apicID
        table[position].ebx = apicID  // one thread a core
        table[position].ecx = 0  // one node
      default: break
      }
    }
    for leaf: UInt32 in [0x0b, 0x1f] where leaf == 0x0b || supported.contains(where: { $0.function == 0x1f }) {
      // Level 0: one thread a core. Level 1: the cores.
      table.append(subleaf(leaf, 0, eax: 0, ebx: 1, ecx: 1 << 8, edx: apicID))
      table.append(subleaf(leaf, 1, eax: coreBits, ebx: cpus, ecx: 2 << 8 | 1, edx: apicID))
      table.append(subleaf(leaf, 2, eax: 0, ebx: 0, ecx: 2, edx: apicID))
    }
    // Leaf 0x15: TSC frequency = crystal (ECX) * EBX / EAX. The crystal drives the APIC timer too, so it has to be KVM's.
    table.append(entry(0x15, eax: apicBusHz / 1000, ebx: machine.tscKHz, ecx: apicBusHz))
    // Leaf 0x40000010 (as VMware and QEMU have it): kHz of the TSC and of the APIC bus.
    table.append(entry(0x4000_0010, eax: machine.tscKHz, ebx: apicBusHz / 1000))
    return table
  }

  /// Whether the vendor is AMD, or Hygon, whose processors are AMD's.
  static func isAMD(_ table: [kvm_cpuid_entry2]) -> Bool {
    guard let vendor = table.first(where: { $0.function == 0 }) else { return false }
    // EBX, EDX, ECX: "AuthenticAMD", "HygonGenuine"
    return [(0x6874_7541, 0x6974_6e65, 0x444d_4163), (0x6f67_7948, 0x6e65_476e, 0x656e_6975)].contains {
      $0 == (vendor.ebx, vendor.edx, vendor.ecx)
    }
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
