internal import GuestMemory

/// How a machine finds out which pages its guest writes.
public enum DirtyTracking: Equatable, Sendable {
  /// Not at all: nothing is logged, nothing costs.
  case none
  /// A bitmap per memslot, read and cleared as a whole.
  case bitmap
  /// A ring per vCPU of so many pages written (a power of two, 1024 to 65536): what is read is proportional to what was
  /// written, and a full ring gets the vCPU out of the guest. Not for hosts whose KVM interprets guest kernels: it looks at
  /// the ring only between batches of instructions, which can overrun it. That is noticed, and ends the machine.
  case ring(entries: UInt32)
}

/// A mechanism of KVM's that tells which pages the guest wrote. What the VMM itself writes is in ``GuestMemory/dirty``.
protocol DirtySource: Sendable {
  /// Adds the pages written since the last call, and watches them again. The vCPUs stand still, unless the caller can
  /// live with pages being reported now and once more.
  func harvest(into pages: inout PageSet) throws(KVMError)
  /// A vCPU left the guest because its share is full. On its own thread. False when pages have been lost.
  func overflow(vcpu: Int) -> Bool
}
