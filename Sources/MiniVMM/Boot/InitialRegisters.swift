internal import CKVM
internal import GuestMemory
internal import StateCodec

/// Where and how the first vCPU begins.
enum EntryPoint: Equatable {
  /// 64-bit Linux boot protocol: long mode, RAM below 4 GiB mapped one to one, RSI = zero page.
  case linux64(UInt64)
  /// PVH: 32-bit protected mode without paging, EBX = hvm_start_info.
  case pvh(UInt32)
}

extension EntryPoint {
  private static let code32Selector: UInt16 = 0x08
  /// __BOOT_CS and __BOOT_DS of the Linux boot protocol.
  private static let code64Selector: UInt16 = 0x10
  private static let dataSelector: UInt16 = 0x18
  private static let tssSelector: UInt16 = 0x20

  /// Writes the GDT, and for long mode the page tables, that ``apply(to:)`` points the vCPU at.
  func writeTables(to memory: GuestMemory) throws(BootError) {
    let gdt: [UInt64] = [
      0, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067,
    ]
    try memory.put(StateWriter.bytes { out in gdt.forEach { out.put($0) } }, at: BootLayout.gdt)
    guard case .linux64 = self else { return }
    // 4 GiB by 2 MiB pages: present, writable, accessed, dirty, large.
    let (pml4, pdpt, directories) = (
      BootLayout.pageTables, BootLayout.pageTables + 0x1000, BootLayout.pageTables + 0x2000
    )
    try memory.put(StateWriter.bytes { $0.put(pdpt | 3) }, at: pml4)
    try memory.put(StateWriter.bytes { out in (0..<4).forEach { out.put(directories + $0 * 0x1000 | 3) } }, at: pdpt)
    try memory.put(
      StateWriter.bytes { out in (0..<2048).forEach { (page: UInt64) in out.put(page << 21 | 0xe3) } }, at: directories)
  }

  func apply(to vcpu: VirtualCPU) throws(KVMError) {
    var sregs = try vcpu.sregs()
    sregs.gdt.base = BootLayout.gdt
    sregs.gdt.limit = 5 * 8 - 1
    sregs.idt.base = 0
    sregs.idt.limit = 0
    let isLong: Bool
    switch self {
    case .linux64:
      isLong = true
      sregs.cr3 = BootLayout.pageTables
      sregs.cr4 = 1 << 5  // PAE
      sregs.cr0 = 1 << 31 | 1 << 4 | 1  // PG, ET, PE
      sregs.efer = 1 << 10 | 1 << 8  // LMA, LME
    case .pvh:
      isLong = false
      sregs.cr3 = 0
      sregs.cr4 = 0
      sregs.cr0 = 1 << 4 | 1
      sregs.efer = 0
    }
    sregs.cs = Self.segment(isLong ? Self.code64Selector : Self.code32Selector, type: 0xb)
    sregs.cs.l = isLong ? 1 : 0
    sregs.cs.db = isLong ? 0 : 1
    let data = Self.segment(Self.dataSelector, type: 3)
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data)
    sregs.tr = Self.segment(Self.tssSelector, type: 0xb)
    (sregs.tr.s, sregs.tr.g, sregs.tr.db, sregs.tr.limit) = (0, 0, 0, 0x67)
    try vcpu.setSregs(sregs)

    var regs = kvm_regs()
    regs.rflags = 2  // the bit that is always 1
    switch self {
    case .linux64(let entry):
      regs.rip = entry
      regs.rsi = BootLayout.zeroPage
      regs.rsp = BootLayout.pageTables  // the kernel sets its own; this is at least RAM
    case .pvh(let entry):
      regs.rip = UInt64(entry)
      regs.rbx = BootLayout.startInfo
    }
    try vcpu.setRegs(regs)
  }

  private static func segment(_ selector: UInt16, type: UInt8) -> kvm_segment {
    var segment = kvm_segment()
    segment.limit = 0xffff_ffff
    segment.selector = selector
    segment.type = type
    segment.present = 1
    segment.s = 1
    segment.g = 1
    segment.db = 1
    return segment
  }
}
