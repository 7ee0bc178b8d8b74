internal import CKVM
internal import CLinux
internal import GuestMemory

/// A KVM virtual machine: its memslots, interrupt controllers, timer and clock. No vCPUs; those are ``VirtualCPU``.
///
/// Every call is one ioctl, safe from any thread.
final class VirtualMachine: Sendable {
  /// KVM wants three pages below 4 GiB for itself on Intel hosts; these lie in the hole, above every device window.
  static let identityMapAddress: UInt64 = 0xfffb_c000
  static let tssAddress: UInt = 0xfffb_d000

  let descriptor: Descriptor
  let memory: GuestMemory

  /// Makes the virtual machine with its memslots, PICs, IOAPIC and PIT.
  init(_ system: KVMSystem, memory: GuestMemory) throws(KVMError) {
    descriptor = Descriptor(owning: try system.descriptor.call(.createVM))
    self.memory = memory
    try descriptor.set(.setIdentityMapAddress, Self.identityMapAddress)
    try descriptor.call(.setTSSAddress, Self.tssAddress)
    // Before the interrupt chips: they start an SRCU grace period that the first memslot after them would wait out, 4 to
    // 9 ms.
    try mapMemory(logDirtyPages: false)
    try descriptor.call(.createIRQChip)
    // The guest reads port 0x61 to calibrate; a real speaker gate would make it an exit of ours.
    var pit = kvm_pit_config()
    pit.flags = UInt32(KVM_PIT_SPEAKER_DUMMY)
    try descriptor.set(.createPIT2, pit)
    try maskPICs()
  }

  /// Leaves both PICs masked, as firmware does: unmasked and not initialised they would deliver device interrupts, which
  /// reach them as well as the IOAPIC, at the vectors of exceptions.
  private func maskPICs() throws(KVMError) {
    // kvm_irqchip: chip_id and padding, 8 bytes; kvm_pic_state: last_irr, irr, imr.
    let interruptMask = 10
    for id in [UInt8(KVM_IRQCHIP_PIC_MASTER), UInt8(KVM_IRQCHIP_PIC_SLAVE)] {
      var chip = try irqchip(id)
      chip[interruptMask] = 0xff
      try setIRQChip(chip)
    }
  }

  /// Before the first vCPU. Guests have no PMU (``CPUID``). AMD's first four counters have no CPUID bit that says so: a guest tries
  /// them, finds out by #GP, and KVM would log each try. Kernels before 5.18 leave the counters that CPUID does not show.
  func hidePMU(_ system: KVMSystem, isAMD: Bool) throws(KVMError) {
    if system.capability(.pmu) & Int(KVM_PMU_CAP_DISABLE) != 0 { try enable(.pmu, UInt64(KVM_PMU_CAP_DISABLE)) }
    guard isAMD, system.capability(.msrFilter) > 0 else { return }
    let (first, count): (UInt32, UInt32) = (0xc001_0000, 8)  // PerfEvtSel0 to 3, PerfCtr0 to 3
    let result = ckvm_deny_registers(descriptor.raw, first, count)
    guard result >= 0 else { throw .failed(.setMSRFilter, errno: -result) }
  }

  // MARK: Memslots

  /// Adds every RAM region as the memslot of its index, or changes whether KVM logs the pages it dirties.
  func mapMemory(logDirtyPages: Bool) throws(KVMError) {
    for (slot, region) in memory.regions.enumerated() {
      try setSlot(slot, region, size: region.size, logDirtyPages: logDirtyPages)
    }
  }

  /// Deletes and re-adds every memslot, which throws away all translations KVM has cached: with shadow paging it keeps
  /// those of page tables that user space overwrote. No vCPU may run; dirty pages must have been harvested.
  func refreshTranslations(logDirtyPages: Bool) throws(KVMError) {
    for (slot, region) in memory.regions.enumerated() {
      try setSlot(slot, region, size: 0, logDirtyPages: false)
    }
    try mapMemory(logDirtyPages: logDirtyPages)
  }

  private func setSlot(
    _ slot: Int, _ region: GuestMemory.Region, size: UInt64, logDirtyPages: Bool
  ) throws(KVMError) {
    guard let host = unsafe memory.hostPointer(at: region.start, count: region.size) else { return }
    var value = kvm_userspace_memory_region()
    value.slot = UInt32(slot)
    value.flags = logDirtyPages ? UInt32(KVM_MEM_LOG_DIRTY_PAGES) : 0
    value.guest_phys_addr = region.start
    value.memory_size = size
    value.userspace_addr = UInt64(UInt(bitPattern: host))
    try descriptor.set(.setUserMemoryRegion, value)
  }

  // MARK: Interrupts and notifications

  /// Lets `eventfd` raise global system interrupt `gsi` (edge).
  func addInterrupt(eventfd: CInt, gsi: UInt32) throws(KVMError) {
    var value = kvm_irqfd()
    value.fd = UInt32(bitPattern: eventfd)
    value.gsi = gsi
    try descriptor.set(.irqfd, value)
  }

  /// Lets a 4-byte guest write of `value` to MMIO `address` signal `eventfd` instead of exiting.
  func addDoorbell(eventfd: CInt, address: UInt64, value: UInt32) throws(KVMError) {
    var request = kvm_ioeventfd()
    request.fd = eventfd
    request.addr = address
    request.len = 4
    request.datamatch = UInt64(value)
    request.flags = ckvm_ioeventfd_datamatch
    try descriptor.set(.ioeventfd, request)
  }

  // MARK: State

  /// `kvm_irqchip` of chip `id` (KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC), id included.
  func irqchip(_ id: UInt8) throws(KVMError) -> [UInt8] {
    var chip = [UInt8](repeating: 0, count: MemoryLayout<kvm_irqchip>.size)
    chip[0] = id
    return try descriptor.getBytes(.getIRQChip, chip)
  }
  func setIRQChip(_ chip: [UInt8]) throws(KVMError) { try descriptor.setBytes(.setIRQChip, chip) }

  func clock() throws(KVMError) -> kvm_clock_data { try descriptor.get(.getClock, kvm_clock_data()) }
  func setClock(_ clock: kvm_clock_data) throws(KVMError) { try descriptor.set(.setClock, clock) }

  // MARK: Capabilities

  func enable(_ capability: Capability, _ argument: UInt64) throws(KVMError) {
    var request = kvm_enable_cap()
    request.cap = UInt32(capability.number)
    request.args.0 = argument
    try descriptor.set(.enableCap, request)
  }
}
