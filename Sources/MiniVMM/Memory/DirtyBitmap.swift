internal import CKVM
internal import GuestMemory
internal import Synchronization

/// KVM_GET_DIRTY_LOG. Where the kernel lets the caller choose when to protect pages again
/// (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2), exactly those are cleared that were given, so none can be lost in between.
final class DirtyBitmap: DirtySource {
  private let machine: VirtualMachine
  private let clearsByHand: Bool
  /// One bitmap a memslot, kept to spare an allocation a harvest.
  private let bitmaps: Mutex<[[UInt64]]>

  /// Before the memslots log.
  init(_ machine: VirtualMachine, _ kvm: KVMSystem) throws(KVMError) {
    self.machine = machine
    clearsByHand = kvm.capability(.manualDirtyLog) & Int(ckvm_dirty_log_manual_protect) != 0
    if clearsByHand { try machine.enable(.manualDirtyLog, ckvm_dirty_log_manual_protect) }
    bitmaps = Mutex(machine.memory.regions.map { [UInt64](repeating: 0, count: Self.words(Self.pages($0))) })
  }

  func harvest(into pages: inout PageSet) throws(KVMError) {
    let regions = machine.memory.regions
    for (slot, region) in regions.enumerated() {
      // Regions begin at multiples of 64 pages in the file, so whole words are united.
      let firstWord = Int(region.fileOffset / GuestMemory.pageSize / 64)
      let result: CInt = bitmaps.withLock { bitmaps in
        let result = read(slot, region, &bitmaps[slot])
        guard result >= 0 else { return result }
        for index in bitmaps[slot].indices { pages.words[firstWord + index] |= bitmaps[slot][index] }
        return result
      }
      guard result >= 0 else { throw .failed(clearsByHand ? .clearDirtyLog : .getDirtyLog, errno: -result) }
    }
  }

  func overflow(vcpu: Int) -> Bool { true }

  private func read(_ slot: Int, _ region: GuestMemory.Region, _ bitmap: inout [UInt64]) -> CInt {
    unsafe bitmap.withUnsafeMutableBytes { bytes in
      let result = unsafe ckvm_get_dirty_log(machine.descriptor.raw, UInt32(slot), bytes.baseAddress)
      guard result >= 0, clearsByHand else { return result }
      return unsafe ckvm_clear_dirty_log(
        machine.descriptor.raw, UInt32(slot), 0, UInt32(Self.pages(region)), bytes.baseAddress)
    }
  }

  private static func pages(_ region: GuestMemory.Region) -> Int { Int(region.size / GuestMemory.pageSize) }
  private static func words(_ pages: Int) -> Int { (pages + 63) / 64 }
}
