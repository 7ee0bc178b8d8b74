internal import Glibc
public import GuestMemory

/// What came of a disk request's I/O.
public enum DiskOutcome: Sendable, Equatable {
  case done
  /// Can't be finished without waiting, or not that way; only with `nowait`.
  case wouldBlock
  /// An errno.
  case failed(Int32)
}

/// What a virtio-blk device keeps its blocks in. Calls come from the device thread and from the device's workers, several
/// at a time. Positions and counts are bytes and lie within ``capacity``; the device has checked that.
public protocol Disk: AnyObject, Sendable {
  var isReadOnly: Bool { get }
  /// In bytes, a multiple of 512; does not change.
  var capacity: UInt64 { get }

  /// Reads into guest buffers and marks their pages.
  /// - Parameter nowait: give up with ``DiskOutcome/wouldBlock`` rather than wait for the medium. Unless it is done, the device
  ///   asks again on a worker, without `nowait`: only what comes of that is the request's.
  func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome
  /// Writes from guest buffers, from `offset` in them on.
  func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome
  /// Makes everything written durable.
  func flush() -> DiskOutcome
  /// The range's contents are not needed any more.
  func discard(position: UInt64, count: UInt64) -> DiskOutcome
  /// The range reads as zeros from now on; with `unmap` it may be deallocated.
  func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome
  /// Reads `bytes.count` bytes at `position`. 0 or an errno.
  func copy(into bytes: inout [UInt8], from position: UInt64) -> CInt
  /// Between true and false somebody waits for the end of what is under way: a disk that has requests wait for others than
  /// the medium does not then. Any thread.
  func hurry(_ hurries: Bool)
}

extension Disk {
  public func copy(into bytes: inout [UInt8], from position: UInt64) -> CInt { EOPNOTSUPP }
  public func hurry(_ hurries: Bool) {}
}

/// A disk that can be written without a guest's buffers, for those who replicate it.
public protocol ByteDisk: Disk {
  /// Writes bytes at `position`. 0 or an errno.
  func put(_ bytes: [UInt8], at position: UInt64) -> CInt
  /// The first range at or behind `position` that is not a hole; nil when there is none.
  func data(from position: UInt64) -> Range<UInt64>?
}
