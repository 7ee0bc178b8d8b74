internal import CKVM
internal import GuestMemory
internal import Synchronization

/// KVM_GET_DIRTY_LOG, which takes each bit and protects its page in one step, so that none can be lost in between. To clear by
/// hand (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) would be a second system call, in the pause as well: what is written after the guest
/// goes on belongs to the next harvest.
final class DirtyBitmap: DirtySource {
  private let machine: VirtualMachine
  /// One bitmap a memslot, kept to spare an allocation a harvest.
  private let bitmaps: Mutex<[[UInt64]]>

  init(_ machine: VirtualMachine) {
    self.machine = machine
    bitmaps = Mutex(machine.memory.regions.map { [UInt64](repeating: 0, count: Self.words(Self.pages($0))) })
  }

  func harvest(into pages: inout PageSet) throws(KVMError) {
    let regions = machine.memory.regions
    for (slot, region) in regions.enumerated() {
      // Regions begin at multiples of 64 pages in the file, so whole words are united.
      let firstWord = Int(region.fileOffset / GuestMemory.pageSize / 64)
      let result: CInt = bitmaps.withLock { bitmaps in
        unsafe bitmaps[slot].withUnsafeMutableBufferPointer { bitmap in
          let result = unsafe ckvm_get_dirty_log(machine.descriptor.raw, UInt32(slot), bitmap.baseAddress)
          if result >= 0 { unsafe pages.formUnion(bitmap.span, fromWord: firstWord) }
          return result
        }
      }
      guard result >= 0 else { throw .failed(.getDirtyLog, errno: -result) }
    }
  }

  func overflow(vcpu: Int) -> Bool { true }

  private static func pages(_ region: GuestMemory.Region) -> Int { Int(region.size / GuestMemory.pageSize) }
  private static func words(_ pages: Int) -> Int { (pages + 63) / 64 }
}
