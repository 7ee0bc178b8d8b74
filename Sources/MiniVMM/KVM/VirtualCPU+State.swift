internal import CKVM
internal import Synchronization

/// Saving and restoring. The order of the ioctls is part of the interface: each comment says what forces it.
extension VirtualCPU {
  static let tscRegister: UInt32 = 0x10
  static let tscDeadlineRegister: UInt32 = 0x6e0
  private static let tscAdjustRegister: UInt32 = 0x3b

  /// Counters, their controls and buffers, of which guests have none (``CPUID``): Intel SDM vol. 4; AMD APM vol. 2, appendix A.
  private static let pmuRegisters: [ClosedRange<UInt32>] = [
    0xc1...0xc8, 0x186...0x18d, 0x309...0x30c, 0x345...0x345, 0x38d...0x390, 0x3f1...0x3f2, 0x4c1...0x4c8,
    0x600...0x600,
    0xc000_0300...0xc000_0302, 0xc001_0000...0xc001_0007, 0xc001_0200...0xc001_020b,
  ]

  /// The registers of `list` that belong to saved state and that KVM really reads, and the timer's deadline at the end.
  func readableRegisters(of list: [UInt32]) throws(KVMError) -> RegisterList {
    // Saved apart: the counter and its deadline. Older names of kvmclock's registers: 0x11, 0x12.
    let candidates = list.filter { index in
      ![Self.tscRegister, Self.tscDeadlineRegister, 0x11, 0x12].contains(index)
        && !Self.pmuRegisters.contains { $0.contains(index) }
    }
    var readable: [UInt32] = []
    var rest = (candidates + [Self.tscDeadlineRegister])[...]
    while !rest.isEmpty {
      let read = try msrs(rest).count
      readable += rest.prefix(read)
      rest = rest.dropFirst(read + 1)
    }
    return RegisterList(readable)
  }

  /// - Parameter hostTSC: the host's counter at the moment of the saved clock, where KVM told it.
  func save(_ list: RegisterList, xsaveSize: Int, hostTSC: UInt64?) throws(KVMError) -> VCPUState {
    var state = VCPUState()
    func get(_ request: KVMRequest, _ size: Int) throws(KVMError) -> [UInt8] {
      try descriptor.getBytes(request, [UInt8](repeating: 0, count: size))
    }
    // First: its getter takes in pending INIT and SIPI, which changes registers.
    state.mpState = try get(.getMPState, VCPUState.mpStateSize)
    state.lapic = try get(.getLAPIC, VCPUState.lapicSize)
    // An INIT or SIPI that has just been taken in came after the last KVM_RUN, and has turned the APIC off.
    if let left = leftRegisters, isAPICEnabled(state.lapic) {
      state.regs = unsafe withUnsafeBytes(of: left.regs) { unsafe Array($0) }
      state.sregs = unsafe withUnsafeBytes(of: left.sregs) { unsafe Array($0) }
    } else {
      state.regs = try get(.getRegs, VCPUState.regsSize)
      state.sregs = try get(.getSregs, VCPUState.sregsSize)
    }
    state.xsave = try get(xsaveSize > 4096 ? .getXSAVE2 : .getXSAVE, xsaveSize)
    state.xcrs = try get(.getXCRs, VCPUState.xcrsSize)
    state.debugRegs = try get(.getDebugRegs, VCPUState.debugRegsSize)
    state.tscKHz = try tscFrequency()
    state.cpuid = try savedCPUID()
    // The deadline with the others: each call costs as much as a hundred registers.
    state.registers = try list.read(descriptor)
    let deadline =
      state.registers.last?.index == Self.tscDeadlineRegister ? state.registers.removeLast().value : nil
    state.tsc = try guestTSC(
      hostTSC: hostTSC, adjust: state.registers.first { $0.index == Self.tscAdjustRegister }?.value)
    if let deadline {
      // 0 with an armed timer: it has fired and its interrupt is on the way, seen by no other register. A deadline
      // in the past raises it again; a guest takes one timer interrupt too many easily, one too few never.
      state.tscDeadline = deadline == 0 && deadlineTimerIsArmed(state.lapic) ? max(1, state.tsc) : deadline
    }
    state.events = try get(.getVCPUEvents, VCPUState.eventsSize)
    return state
  }

  /// - Parameters:
  ///   - setsCPUID: whether the vCPU has never run; KVM refuses changes later.
  ///   - tsc: how to make its time stamp counter continue.
  func restore(_ state: VCPUState, setsCPUID: Bool, tsc: TSCRestore) throws(KVMError) {
    knownOffset.withLock { $0 = nil }
    forgetRegisters()
    if setsCPUID { try setCPUID(Self.cpuidEntries(state.cpuid)) }
    try descriptor.setBytes(.setMPState, state.mpState)
    // Clears pending exceptions, so before the events.
    try descriptor.setBytes(.setRegs, state.regs)
    if !setsCPUID {
      // The same CR3 over other page tables: KVM flushes the guest's TLB only when it sees a register change.
      var other = try sregs()
      other.cr3 ^= 0x1000
      try setSregs(other)
    }
    try descriptor.setBytes(.setSregs, state.sregs)
    try descriptor.setBytes(.setXSAVE, state.xsave)
    try descriptor.setBytes(.setXCRs, state.xcrs)
    try descriptor.setBytes(.setDebugRegs, state.debugRegs)
    // After SREGS, which say where and in which mode the APIC is; before the deadline, which it would disarm.
    try descriptor.setBytes(.setLAPIC, state.lapic)
    let shift = try setGuestTSC(state.tsc, tsc)
    try setRegisters(state.registers)
    if let saved = state.tscDeadline {
      let deadline = Self.deadline(saved, shiftedBy: shift)
      try setMSRs([kvm_msr_entry(index: Self.tscDeadlineRegister, reserved: 0, data: deadline)])
    }
    try descriptor.setBytes(.setVCPUEvents, state.events)
  }

  static func cpuidEntries(_ bytes: [UInt8]) -> [kvm_cpuid_entry2] {
    let size = VCPUState.cpuidEntrySize
    return unsafe bytes.withUnsafeBytes { raw in
      (0..<raw.count / size).map { unsafe raw.loadUnaligned(fromByteOffset: $0 * size, as: kvm_cpuid_entry2.self) }
    }
  }

  /// Writes in order those that differ. KVM logs writes of some registers even when nothing changes, refuses those of others that it
  /// lets nobody write, and writes guest memory when it is told again where the wall clock is.
  private func setRegisters(_ registers: [VCPUState.Register]) throws(KVMError) {
    var changed: [kvm_msr_entry] = []
    var rest = registers[...]
    while !rest.isEmpty {
      let present = try msrs(rest.map(\.index)[...])
      for (register, now) in zip(rest, present) where register.value != now.data {
        changed.append(kvm_msr_entry(index: register.index, reserved: 0, data: register.value))
      }
      rest = rest.dropFirst(present.count)
      // KVM does not read this one here, but may write it.
      if let unread = rest.popFirst() {
        changed.append(kvm_msr_entry(index: unread.index, reserved: 0, data: unread.value))
      }
    }
    try setMSRs(changed)
  }

  // MARK: Time stamp counter

  /// How a restored vCPU's counter is made to continue.
  enum TSCRestore {
    /// Through the offset from the host's counter: exact, the same for all vCPUs. `hostTSC` and `elapsed` (in guest
    /// cycles since the save) belong to one moment.
    case offset(hostTSC: UInt64, elapsed: UInt64)
    /// By writing the register: KVM has to guess that vCPUs written in a row belong together.
    case register(elapsed: UInt64)
  }

  private func guestTSC(hostTSC: UInt64?, adjust: UInt64?) throws(KVMError) -> UInt64 {
    // A host that tells its counter has a stable one, and changes offsets for nobody but the guest.
    if let hostTSC, let adjust, let known = knownOffset.withLock({ $0 }), known.adjust == adjust {
      return hostTSC &+ known.offset
    }
    if let hostTSC, let tscOffset {
      if let adjust { knownOffset.withLock { $0 = (adjust, tscOffset) } }
      return hostTSC &+ tscOffset
    }
    return try msrs([Self.tscRegister]).first?.data ?? 0
  }

  /// Makes the counter continue, and says by how much it is off nevertheless: nothing, except where KVM takes in what it
  /// is told and shows the guest the host's counter all the same.
  private func setGuestTSC(_ saved: UInt64, _ how: TSCRestore) throws(KVMError) -> Int64 {
    switch how {
    case .offset(let hostTSC, let elapsed):
      let wanted = saved &+ elapsed &- hostTSC
      try setTSCOffset(wanted)
      return Int64(bitPattern: (tscOffset ?? wanted) &- wanted)
    case .register(let elapsed):
      let wanted = saved &+ elapsed
      // A value within a second of what KVM expects it takes for one of vCPUs that are set in a row, and adds to it the time since the
      // machine was made (kvm_synchronize_tsc in arch/x86/kvm/x86.c). So the first vCPU is set far off before.
      for value in index == 0 ? [wanted ^ 1 << 62, wanted] : [wanted] {
        try setMSRs([kvm_msr_entry(index: Self.tscRegister, reserved: 0, data: value)])
      }
      let shift = Int64(bitPattern: (try msrs([Self.tscRegister]).first?.data ?? wanted) &- wanted)
      // Less than a second is the time since it was set.
      return shift.magnitude < UInt64(try tscFrequency()) * 1000 ? 0 : shift
    }
  }

  /// The deadline that is as far ahead of a counter that is off by `shift` as the saved one was: left as it is, a timer
  /// would be hours late on a host that was booted after the one it was saved on. 0 is no timer; one long due stays due.
  static func deadline(_ saved: UInt64, shiftedBy shift: Int64) -> UInt64 {
    saved == 0 ? 0 : UInt64(clamping: max(1, Int128(saved) + Int128(shift)))
  }

  /// What the guest's counter is ahead of the host's; nil where KVM doesn't tell.
  var tscOffset: UInt64? {
    var offset: UInt64 = 0
    return unsafe ckvm_tsc_offset(descriptor.raw, .getDeviceAttr, &offset) >= 0 ? offset : nil
  }

  func setTSCOffset(_ value: UInt64) throws(KVMError) {
    var offset = value
    let result = unsafe ckvm_tsc_offset(descriptor.raw, .setDeviceAttr, &offset)
    guard result >= 0 else { throw .failed(.setDeviceAttr, errno: -result) }
  }

  /// Bit 8 of the spurious-interrupt vector register (0xf0): 0 after a reset and after INIT (Intel SDM vol. 3, 11.4.7).
  private func isAPICEnabled(_ lapic: [UInt8]) -> Bool { apicRegister(lapic, 0xf0) >> 8 & 1 == 1 }

  private func apicRegister(_ lapic: [UInt8], _ offset: Int) -> UInt32 {
    (0..<4).reduce(0) { $0 | UInt32(lapic[offset + $1]) << UInt32(8 * $1) }
  }

  /// Whether the LVT timer entry (0x320) is unmasked and in TSC-deadline mode (Intel SDM vol. 3, 11.5.4).
  private func deadlineTimerIsArmed(_ lapic: [UInt8]) -> Bool {
    let entry = apicRegister(lapic, 0x320)
    return entry >> 17 & 3 == 2 && entry >> 16 & 1 == 0
  }
}
