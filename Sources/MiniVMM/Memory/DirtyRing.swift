internal import CKVM
internal import CLinux
internal import Glibc
internal import GuestMemory
internal import Synchronization

/// The dirty rings (KVM_CAP_DIRTY_LOG_RING_ACQ_REL): each vCPU lists the pages it writes.
///
/// What is taken from a ring outside a harvest goes to ``GuestMemory/dirty``, which every harvest includes.
final class DirtyRings: DirtySource {
  private let machine: VirtualMachine
  private let rings: [Ring]

  /// Before the first vCPU is made.
  static func enable(_ machine: VirtualMachine, _ kvm: KVMSystem, entries: UInt32) throws(KVMError) {
    guard kvm.capability(.dirtyRing) > 0 else { throw .missingCapability(Capability.dirtyRing.name) }
    try machine.enable(.dirtyRing, UInt64(entries) * UInt64(MemoryLayout<kvm_dirty_gfn>.size))
  }

  init(_ machine: VirtualMachine, _ vcpus: [VirtualCPU], entries: UInt32) throws(KVMError) {
    self.machine = machine
    var rings: [Ring] = []
    for vcpu in vcpus { rings.append(try Ring(vcpu, entries: entries)) }
    self.rings = rings
  }

  func harvest(into pages: inout PageSet) throws(KVMError) {
    var taken = 0
    for ring in rings {
      guard let count = ring.take({ slot, offset in if let page = page(slot, offset) { pages.insert(page) } }) else {
        throw .dirtyRingOverrun
      }
      taken += count
    }
    if taken > 0 { try machine.descriptor.call(.resetDirtyRings) }
  }

  func overflow(vcpu: Int) -> Bool {
    guard vcpu < rings.count else { return false }
    let taken = rings[vcpu].take { slot, offset in
      if let page = page(slot, offset) { machine.memory.dirty.insert(first: page, last: page) }
    }
    // Full with nothing in it: the kernel's place in the ring is no longer ours.
    guard let taken, taken > 0 else { return false }
    return (try? machine.descriptor.call(.resetDirtyRings)) != nil
  }

  /// Page index in the memfd of a page of a memslot.
  private func page(_ slot: UInt32, _ offset: UInt64) -> Int? {
    let regions = machine.memory.regions
    // The upper half of `slot` is the address space, always 0 here.
    guard slot < regions.count, offset < regions[Int(slot)].size / GuestMemory.pageSize else { return nil }
    return Int(regions[Int(slot)].fileOffset / GuestMemory.pageSize + offset)
  }

  /// One vCPU's ring, mapped.
  @safe private final class Ring: Sendable {
    private nonisolated(unsafe) let base: UnsafeMutablePointer<kvm_dirty_gfn>
    private let entries: UInt32
    /// How many entries were taken so far; harvests and the vCPU's own overflow take turns.
    private let next = Mutex<UInt32>(0)

    init(_ vcpu: VirtualCPU, entries: UInt32) throws(KVMError) {
      var error: CInt = 0
      guard
        let mapping = unsafe lx_mmap(
          Int(entries) * MemoryLayout<kvm_dirty_gfn>.size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.descriptor.raw,
          Int64(ckvm_dirty_ring_offset), &error)
      else { throw .failed(operation: "mmap of a dirty ring", errno: error) }
      unsafe base = mapping.assumingMemoryBound(to: kvm_dirty_gfn.self)
      self.entries = entries
    }

    deinit { unsafe lx_munmap(base, Int(entries) * MemoryLayout<kvm_dirty_gfn>.size) }

    /// How many entries there were; nil when the kernel has gone round and overwritten some. It leaves a reserve at the
    /// end of every ring, so one that is full to the last entry has been overrun.
    func take(_ body: (_ slot: UInt32, _ offset: UInt64) -> Void) -> Int? {
      next.withLock { next in
        var count: UInt32 = 0
        var slot: UInt32 = 0
        var offset: UInt64 = 0
        while unsafe ckvm_dirty_ring_take(base, next % entries, &slot, &offset) != 0 {
          body(slot, offset)
          next &+= 1
          count += 1
        }
        return count < entries ? Int(count) : nil
      }
    }
  }
}
