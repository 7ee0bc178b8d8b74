internal import CKVM

/// A KVM capability by its name in the kernel's documentation (Documentation/virt/kvm/api.rst).
struct Capability: Sendable, Equatable {
  let name: String
  let number: Int32

  /// Without these no machine is made. All are in Linux 5.13, most for much longer.
  static let needed: [Capability] = [
    Capability(name: "KVM_CAP_IRQCHIP", number: KVM_CAP_IRQCHIP),
    Capability(name: "KVM_CAP_USER_MEMORY", number: KVM_CAP_USER_MEMORY),
    Capability(name: "KVM_CAP_SET_TSS_ADDR", number: KVM_CAP_SET_TSS_ADDR),
    Capability(name: "KVM_CAP_SET_IDENTITY_MAP_ADDR", number: KVM_CAP_SET_IDENTITY_MAP_ADDR),
    Capability(name: "KVM_CAP_EXT_CPUID", number: KVM_CAP_EXT_CPUID),
    Capability(name: "KVM_CAP_MP_STATE", number: KVM_CAP_MP_STATE),
    Capability(name: "KVM_CAP_PIT2", number: KVM_CAP_PIT2),
    Capability(name: "KVM_CAP_PIT_STATE2", number: KVM_CAP_PIT_STATE2),
    Capability(name: "KVM_CAP_IRQFD", number: KVM_CAP_IRQFD),
    Capability(name: "KVM_CAP_IOEVENTFD", number: KVM_CAP_IOEVENTFD),
    Capability(name: "KVM_CAP_ADJUST_CLOCK", number: KVM_CAP_ADJUST_CLOCK),
    Capability(name: "KVM_CAP_VCPU_EVENTS", number: KVM_CAP_VCPU_EVENTS),
    Capability(name: "KVM_CAP_DEBUGREGS", number: KVM_CAP_DEBUGREGS),
    Capability(name: "KVM_CAP_XSAVE", number: KVM_CAP_XSAVE),
    Capability(name: "KVM_CAP_XCRS", number: KVM_CAP_XCRS),
    Capability(name: "KVM_CAP_GET_TSC_KHZ", number: KVM_CAP_GET_TSC_KHZ),
    Capability(name: "KVM_CAP_IMMEDIATE_EXIT", number: KVM_CAP_IMMEDIATE_EXIT),
    Capability(name: "KVM_CAP_SYNC_REGS", number: KVM_CAP_SYNC_REGS),
  ]

  static let xsave2 = Capability(name: "KVM_CAP_XSAVE2", number: KVM_CAP_XSAVE2)
  static let tscDeadline = Capability(name: "KVM_CAP_TSC_DEADLINE_TIMER", number: KVM_CAP_TSC_DEADLINE_TIMER)
  static let tscControl = Capability(name: "KVM_CAP_TSC_CONTROL", number: KVM_CAP_TSC_CONTROL)
  static let kvmclockCtrl = Capability(name: "KVM_CAP_KVMCLOCK_CTRL", number: KVM_CAP_KVMCLOCK_CTRL)
  static let dirtyRing = Capability(
    name: "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", number: KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
  static let pmu = Capability(name: "KVM_CAP_PMU_CAPABILITY", number: KVM_CAP_PMU_CAPABILITY)
  static let msrFilter = Capability(name: "KVM_CAP_X86_MSR_FILTER", number: KVM_CAP_X86_MSR_FILTER)
  static let maximumVCPUs = Capability(name: "KVM_CAP_MAX_VCPUS", number: KVM_CAP_MAX_VCPUS)
  static let clockFlags = Capability(name: "KVM_CAP_ADJUST_CLOCK", number: KVM_CAP_ADJUST_CLOCK)

  /// What the machine uses when it is there; the text says what is lost without it.
  static let optional: [(capability: Capability, without: String)] = [
    (tscDeadline, "guests use the slower one-shot APIC timer"),
    (kvmclockCtrl, "a guest may log a soft lockup after a pause"),
    (dirtyRing, "dirty pages are tracked by bitmap only"),
    (tscControl, "a saved machine keeps its time stamp counter's rate only on hosts of the same rate"),
  ]
}
