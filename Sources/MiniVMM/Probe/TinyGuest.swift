internal import CKVM
internal import CLinux
internal import Glibc
internal import GuestMemory

/// Guests of a few instructions in 1 MiB of RAM, each made to show one property of the host. Code is in hex with its
/// assembly beside it; every guest ends with port output.
struct TinyGuest {
  private static let code: UInt64 = 0x1000
  private static let done: [UInt8] = [0xe6, 0x10]  // out %al, $0x10

  private static let pageTable: UInt64 = 0x13000
  private static let userWritable: UInt64 = 7

  let memory: GuestMemory
  let cpu: VirtualCPU
  private let machine: VirtualMachine

  init(_ system: KVMSystem) throws(ProbeError) {
    let memory = try Self.memory { () throws(GuestMemoryError) in try GuestMemory(size: 1 << 20) }
    self.memory = memory
    (machine, cpu) = try Self.kvm { () throws(KVMError) in
      let machine = try VirtualMachine(system, memory: memory)
      // With CPUID: Linux 6.12's KVM refuses long mode to a vCPU that has none.
      return (machine, try Machine.makeVCPUs(1, machine, system)[0])
    }
  }

  // MARK: Properties

  /// Millions of instructions a second on a counting loop in ring 0 or 3: the best of a few goes, the first of which is spent on
  /// page faults.
  static func speed(_ system: KVMSystem, ring: UInt8) throws(ProbeError) -> Double {
    let guest = try TinyGuest(system)
    let rounds: UInt64 = 100_000
    // mov ecx, 100000; dec ecx; jnz -4; out; jmp -13
    try guest.put([0xb9, 0xa0, 0x86, 0x01, 0x00, 0xff, 0xc9, 0x75, 0xfc] + done + [0xeb, 0xf3])
    try guest.startLong(ring: ring)
    var best = UInt64.max
    for _ in 0..<4 {
      let start = lx_monotonic_ns()
      try guest.runToOutput()
      best = min(best, lx_monotonic_ns() - start)
    }
    return Double(2 * rounds) * 1000 / Double(max(1, best))
  }

  /// Microseconds of a port output exit and the next entry.
  static func exitCost(_ system: KVMSystem) throws(ProbeError) -> Double {
    let guest = try TinyGuest(system)
    try guest.put(done + [0xeb, 0xfc])  // out; jmp -4
    try guest.startReal()
    try guest.runToOutput()
    let rounds = 2000
    let start = lx_monotonic_ns()
    for _ in 0..<rounds { try guest.runToOutput() }
    return Double(lx_monotonic_ns() - start) / 1000 / Double(rounds)
  }

  /// Whether a feature bit left out of KVM_SET_CPUID2 stays hidden: POPCNT (leaf 1, ECX bit 23), which hosts have.
  static func cpuidCanHide(_ system: KVMSystem) throws(ProbeError) -> Bool {
    let guest = try TinyGuest(system)
    let feature: UInt32 = 1 << 23
    return try kvm { () throws(KVMError) in
      var table = try guest.cpu.cpuid()
      for index in table.indices where table[index].function == 1 { table[index].ecx &= ~feature }
      try guest.cpu.setCPUID(table)
      return try guest.cpu.cpuid().allSatisfy { $0.function != 1 || $0.ecx & feature == 0 }
    }
  }

  /// Whether a vCPU's time stamp counter can be set apart from the host's. Not to the cycle: on a host whose own counter is not
  /// stable, KVM goes by its clock, and the offset changes from one call to the next.
  static func counterCanBeSet(_ system: KVMSystem) throws(ProbeError) -> Bool {
    let guest = try TinyGuest(system)
    return try kvm { () throws(KVMError) in
      guard let offset = guest.cpu.tscOffset else { return true }
      let (step, wanted): (UInt64, UInt64) = (1 << 36, offset &- 1 << 36)
      try guest.cpu.setTSCOffset(wanted)
      let now = guest.cpu.tscOffset ?? wanted
      return Int64(bitPattern: now &- wanted).magnitude < step / 2
    }
  }

  /// Whether the guest goes on seeing an old page after user space has changed its page table under it: a long-mode
  /// guest in ring 3 (where no host interprets) reads address 0x5000 twice, and in between its page-table entry is
  /// pointed elsewhere.
  static func translationsGoStale(_ system: KVMSystem) throws(ProbeError) -> Bool {
    let guest = try TinyGuest(system)
    try guest.store(0x11, at: 0x5000)
    try guest.store(0x22, at: 0x6000)
    // mov al, [0x5000]; out; jmp -11
    try guest.put([0x8a, 0x04, 0x25, 0x00, 0x50, 0x00, 0x00] + done + [0xeb, 0xf5])
    try guest.startLong(ring: 3)
    let before = try guest.runToOutput()
    try guest.store(0x6000 | Self.userWritable, at: Self.pageTable + 5 * 8)
    let after = try guest.runToOutput()
    return before == 0x11 && after == 0x11
  }

  // MARK: Running

  private func put(_ bytes: [UInt8]) throws(ProbeError) {
    try Self.memory { () throws(GuestMemoryError) in try memory.write(bytes, at: Self.code) }
  }

  private func store(_ value: UInt64, at address: UInt64) throws(ProbeError) {
    try Self.memory { () throws(GuestMemoryError) in try memory.store(value, at: address) }
  }

  /// Real mode at ``code``.
  private func startReal() throws(ProbeError) {
    try Self.kvm { () throws(KVMError) in
      var sregs = try cpu.sregs()
      sregs.cs.base = 0
      sregs.cs.selector = 0
      try cpu.setSregs(sregs)
      try setInstructionPointer()
    }
  }

  /// 64-bit mode at ``code`` in ring 0 or 3 with I/O privilege, flat segments, RAM mapped one to one by 4 KiB pages.
  private func startLong(ring: UInt8) throws(ProbeError) {
    let (pml4, pdpt, directory): (UInt64, UInt64, UInt64) = (0x10000, 0x11000, 0x12000)
    try store(pdpt | Self.userWritable, at: pml4)
    try store(directory | Self.userWritable, at: pdpt)
    try store(Self.pageTable | Self.userWritable, at: directory)
    for page: UInt64 in 0..<256 { try store(page << 12 | Self.userWritable, at: Self.pageTable + page * 8) }
    try Self.kvm { () throws(KVMError) in
      var sregs = try cpu.sregs()
      var flat = kvm_segment()
      flat.limit = 0xffff_ffff
      flat.g = 1
      flat.present = 1
      flat.s = 1
      flat.dpl = ring
      var code = flat
      code.selector = 0x30 | UInt16(ring)
      code.type = 11
      code.l = 1
      var data = flat
      data.selector = 0x28 | UInt16(ring)
      data.type = 3
      data.db = 1
      sregs.cs = code
      (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data)
      sregs.cr3 = pml4
      sregs.cr4 = 1 << 5  // PAE
      sregs.cr0 = 1 << 31 | 1  // PG, PE
      sregs.efer = 1 << 10 | 1 << 8  // LMA, LME
      try cpu.setSregs(sregs)
      try setInstructionPointer(flags: 3 << 12)
    }
  }

  private func setInstructionPointer(flags: UInt64 = 0) throws(KVMError) {
    var regs = kvm_regs()
    regs.rip = Self.code
    regs.rflags = 2 | flags
    try cpu.setRegs(regs)
  }

  /// Runs until the guest's next port output and returns the byte.
  @discardableResult
  private func runToOutput() throws(ProbeError) -> UInt32 {
    while true {
      let result = cpu.run()
      if result == -EINTR || result == -EAGAIN { continue }
      guard result == 0 else { throw .kvm(.failed(operation: "KVM_RUN", errno: -result)) }
      guard cpu.exitReason == KVM_EXIT_IO, let access = cpu.portAccess else { throw .unexpectedExit(cpu.exitReason) }
      return access.value(0)
    }
  }

  private static func kvm<R>(_ body: () throws(KVMError) -> R) throws(ProbeError) -> R {
    do throws(KVMError) { return try body() } catch { throw .kvm(error) }
  }

  private static func memory<R>(_ body: () throws(GuestMemoryError) -> R) throws(ProbeError) -> R {
    do throws(GuestMemoryError) { return try body() } catch { throw .memory(error) }
  }
}
