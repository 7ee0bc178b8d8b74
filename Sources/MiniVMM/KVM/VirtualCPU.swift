internal import CKVM
internal import CLinux
internal import Glibc
internal import Synchronization

/// A KVM virtual CPU: its descriptor and the `kvm_run` page it shares with the kernel.
///
/// ``run()`` is called by one thread only, its vCPU thread; ``setImmediateExit(_:)`` and ``wantRegisters()`` by any; the rest by
/// whoever knows that the thread is parked.
@safe final class VirtualCPU: Sendable {
  let index: Int
  let descriptor: Descriptor
  private let runSize: Int
  private let knownCPUID = Mutex<[UInt8]>([])
  /// kHz; 0 while not known.
  private let knownFrequency = Atomic<UInt32>(0)
  /// The counter's offset, and the guest's TSC_ADJUST it goes with: whenever the guest changes one, KVM changes both.
  let knownOffset = Mutex<(adjust: UInt64, offset: UInt64)?>(nil)
  private nonisolated(unsafe) let shared: UnsafeMutablePointer<kvm_run>

  init(_ machine: VirtualMachine, _ system: KVMSystem, index: Int) throws(KVMError) {
    descriptor = Descriptor(owning: try machine.descriptor.call(.createVCPU, UInt(index)))
    runSize = system.runSize
    var error: CInt = 0
    guard
      let mapping = unsafe lx_mmap(runSize, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.raw, 0, &error),
      runSize >= MemoryLayout<kvm_run>.size
    else { throw .failed(operation: "mmap of a vCPU", errno: error) }
    unsafe shared = mapping.assumingMemoryBound(to: kvm_run.self)
    self.index = index
  }

  deinit { unsafe lx_munmap(shared, runSize) }

  // MARK: Running

  /// KVM_RUN: 0, or -errno.
  @inline(__always)
  func run() -> CInt { ckvm_run(descriptor.raw) }

  /// Makes the present or the next ``run()`` return -EINTR, together with a signal to its thread.
  func setImmediateExit(_ on: Bool) { unsafe ckvm_set_immediate_exit(shared, on ? 1 : 0) }

  /// A ``run()`` that begins from now on leaves general and special registers as it returns, which spares two system calls.
  func wantRegisters() { unsafe ckvm_want_registers(shared) }
  /// Before the registers change in another way, or by a ``run()`` that need not leave them.
  func forgetRegisters() { unsafe ckvm_forget_registers(shared) }
  /// What the last ``run()`` left; nil when it was not asked to. After a kick, every exit has been answered before it.
  var leftRegisters: (regs: kvm_regs, sregs: kvm_sregs)? {
    guard let left = unsafe ckvm_left_registers(shared) else { return nil }
    var sregs = unsafe left.pointee.sregs
    // KVM sets bits there and clears none. Which interrupt is on its way is in the vCPU's events as well.
    sregs.interrupt_bitmap = (0, 0, 0, 0)
    return unsafe (left.pointee.regs, sregs)
  }

  @inline(__always)
  var exitReason: Int32 { unsafe Int32(bitPattern: shared.pointee.exit_reason) }

  @safe struct PortAccess {
    let isWrite: Bool
    let port: UInt16
    /// 1, 2 or 4 bytes each.
    let size: Int
    /// More than 1 for string instructions.
    let count: Int
    /// `size * count` bytes inside the shared mapping.
    fileprivate let data: UnsafeMutableRawPointer

    @inline(__always)
    func value(_ index: Int) -> UInt32 {
      let at = unsafe data + index * size
      return switch size {
      case 1: unsafe UInt32(at.load(as: UInt8.self))
      case 2: unsafe UInt32(at.loadUnaligned(as: UInt16.self))
      default: unsafe at.loadUnaligned(as: UInt32.self)
      }
    }

    @inline(__always)
    func setValue(_ index: Int, _ value: UInt32) {
      let at = unsafe data + index * size
      switch size {
      case 1: unsafe at.storeBytes(of: UInt8(truncatingIfNeeded: value), as: UInt8.self)
      case 2: unsafe at.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
      default: unsafe at.storeBytes(of: value, as: UInt32.self)
      }
    }
  }

  /// The port access of a KVM_EXIT_IO; nil when the kernel's numbers make no sense.
  @inline(__always)
  var portAccess: PortAccess? {
    let io = unsafe shared.pointee.io
    guard io.size == 1 || io.size == 2 || io.size == 4, let data = unsafe ckvm_io_data(shared, runSize) else {
      return nil
    }
    return unsafe PortAccess(
      isWrite: io.direction == UInt8(KVM_EXIT_IO_OUT), port: io.port, size: Int(io.size), count: Int(io.count),
      data: data)
  }

  /// The access of a KVM_EXIT_MMIO.
  @inline(__always)
  var mmio: (isWrite: Bool, address: UInt64, size: Int) {
    let mmio = unsafe shared.pointee.mmio
    return (mmio.is_write != 0, mmio.phys_addr, Int(mmio.len))
  }
  @inline(__always)
  var mmioValue: UInt64 {
    get { unsafe ckvm_mmio_value(shared) }
    set { unsafe ckvm_set_mmio_value(shared, newValue) }
  }

  /// Type of a KVM_EXIT_SYSTEM_EVENT.
  var systemEvent: UInt32 { unsafe shared.pointee.system_event.type }
  /// The hardware's reason of a KVM_EXIT_FAIL_ENTRY or KVM_EXIT_UNKNOWN.
  var hardwareReason: UInt64 { unsafe shared.pointee.hw.hardware_exit_reason }
  /// Suberror, instruction bytes and what else KVM tells of a KVM_EXIT_INTERNAL_ERROR.
  var internalError: (suberror: UInt32, instruction: [UInt8], data: [UInt64]) {
    var bytes = [UInt8](repeating: 0, count: 15)
    let count = unsafe bytes.withUnsafeMutableBufferPointer { unsafe ckvm_emulation_bytes(shared, $0.baseAddress) }
    let detail = unsafe shared.pointee.internal
    let numbers = unsafe withUnsafeBytes(of: detail.data) { unsafe Array($0.bindMemory(to: UInt64.self)) }
    // Of an instruction that can't be emulated, they are the bytes.
    let known = count > 0 ? 0 : min(Int(detail.ndata), numbers.count)
    return (detail.suberror, Array(bytes.prefix(Int(count))), Array(numbers.prefix(known)))
  }

  // MARK: Registers

  func regs() throws(KVMError) -> kvm_regs { try descriptor.get(.getRegs, kvm_regs()) }
  func setRegs(_ regs: kvm_regs) throws(KVMError) { try descriptor.set(.setRegs, regs) }
  func sregs() throws(KVMError) -> kvm_sregs { try descriptor.get(.getSregs, kvm_sregs()) }
  func setSregs(_ sregs: kvm_sregs) throws(KVMError) { try descriptor.set(.setSregs, sregs) }

  func cpuid() throws(KVMError) -> [kvm_cpuid_entry2] {
    try descriptor.array(.getCPUID2, [kvm_cpuid_entry2](repeating: kvm_cpuid_entry2(), count: 256)).entries
  }
  func setCPUID(_ entries: [kvm_cpuid_entry2]) throws(KVMError) {
    try descriptor.array(.setCPUID2, entries)
    knownCPUID.withLock { $0 = [] }
  }

  /// What ``cpuid()`` says, as bytes, read once: what changes in it mirrors control registers, and KVM sees to that itself.
  func savedCPUID() throws(KVMError) -> [UInt8] {
    let known = knownCPUID.withLock { $0 }
    if !known.isEmpty { return known }
    let entries = try cpuid()
    let bytes = unsafe entries.withUnsafeBytes { unsafe Array($0) }
    knownCPUID.withLock { $0 = bytes }
    return bytes
  }

  /// Reads registers in order; stops before the first that KVM does not read.
  func msrs(_ indices: ArraySlice<UInt32>) throws(KVMError) -> [kvm_msr_entry] {
    let (values, read) = try descriptor.array(
      .getMSRs, indices.map { kvm_msr_entry(index: $0, reserved: 0, data: 0) })
    return Array(values.prefix(Int(read)))
  }
  /// Writes registers in order.
  func setMSRs(_ entries: [kvm_msr_entry]) throws(KVMError) {
    guard !entries.isEmpty else { return }
    let written = Int(try descriptor.array(.setMSRs, entries).result)
    guard written >= entries.count else { throw .registerRefused(msr: entries[written].index) }
  }

  /// kHz of the guest's time stamp counter.
  func tscFrequency() throws(KVMError) -> UInt32 {
    let known = knownFrequency.load(ordering: .relaxed)
    if known > 0 { return known }
    let frequency = UInt32(try descriptor.call(.getTSCkHz))
    knownFrequency.store(frequency, ordering: .relaxed)
    return frequency
  }

  /// - Returns: 0, or -errno where KVM can't scale the counter.
  func setTSCFrequency(_ kHz: UInt32) -> CInt {
    knownFrequency.store(0, ordering: .relaxed)
    return ckvm_ioctl(descriptor.raw, .setTSCkHz, UInt(kHz))
  }
}
