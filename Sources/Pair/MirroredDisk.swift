internal import CLinux
public import Devices
internal import Glibc
public import GuestMemory
internal import Synchronization

/// One change of a disk, on its way to the other side.
public struct DiskChange: Equatable, Sendable {
  public enum Kind: Equatable, Sendable {
    case write([UInt8])
    case discard(count: UInt64)
    case zero(count: UInt64, unmap: Bool)
  }
  public var position: UInt64
  public var kind: Kind

  public init(position: UInt64, kind: Kind) {
    self.position = position
    self.kind = kind
  }

  /// Bytes that it takes to keep.
  public var weight: Int { if case .write(let bytes) = kind { bytes.count + 64 } else { 64 } }
}

/// The disk of a guest that serves: every change goes to the file, and to the secondary while there is one, in the same
/// order.
public final class MirroredDisk: Disk {
  private let file: any ByteDisk
  /// Held from a change of the file until it is told: what the secondary hears is the order in which the file changed.
  private let order: Mutex<(@Sendable (DiskChange) -> Void)?>

  public init(_ file: any ByteDisk) {
    self.file = file
    order = Mutex(nil)
  }

  /// Tells of every change from here on; nil ends that.
  public func mirror(to tell: (@Sendable (DiskChange) -> Void)?) { order.withLock { $0 = tell } }

  /// Tells of the contents of a range as if they had just been written, in turn with the guest's own changes: for the
  /// first copy of a disk. Holes are skipped.
  /// - Returns: where the next data begins behind the range; nil at the end of the disk, or with an errno on a failure.
  public func tellContents(from position: UInt64, limit: Int) throws(HostError) -> UInt64? {
    var failure: HostError?
    let next: UInt64? = order.withLock { tell in
      guard let tell, let extent = file.data(from: position) else { return nil }
      let count = min(limit, Int(min(extent.upperBound, capacity) - extent.lowerBound))
      guard count > 0 else { return nil }
      var bytes = [UInt8](repeating: 0, count: count)
      let error = file.copy(into: &bytes, from: extent.lowerBound)
      guard error == 0 else {
        failure = HostError(operation: "reading the disk", errno: error)
        return nil
      }
      tell(DiskChange(position: extent.lowerBound, kind: .write(bytes)))
      return extent.lowerBound + UInt64(count)
    }
    if let failure { throw failure }
    return next
  }

  public var isReadOnly: Bool { file.isReadOnly }
  public var capacity: UInt64 { file.capacity }

  public func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { file.read(memory, buffers, count: count, position: position, nowait: nowait) }

  public func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    order.withLock { tell in
      guard let tell else {
        return file.write(memory, buffers, offset: offset, count: count, position: position, nowait: nowait)
      }
      // Telling must follow the change at once, whatever the file makes us wait.
      if nowait { return .wouldBlock }
      // A copy first: the guest may change its buffer meanwhile, and both files must get the same bytes.
      var bytes = [UInt8](repeating: 0, count: Int(count))
      let got = unsafe bytes.withUnsafeMutableBytes { unsafe memory.gather(buffers, offset: offset, into: $0) }
      guard got == Int(count) else { return .failed(EFAULT) }
      let error = FaultPoints.failsDiskWrite ? ENOSPC : file.put(bytes, at: position)
      guard error == 0 else { return .failed(error) }
      tell(DiskChange(position: position, kind: .write(bytes)))
      return .done
    }
  }

  public func flush() -> DiskOutcome { file.flush() }

  public func discard(position: UInt64, count: UInt64) -> DiskOutcome {
    order.withLock { tell in
      let outcome = file.discard(position: position, count: count)
      if outcome == .done { tell?(DiskChange(position: position, kind: .discard(count: count))) }
      return outcome
    }
  }

  public func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome {
    order.withLock { tell in
      let outcome = file.writeZeroes(position: position, count: count, unmap: unmap)
      if outcome == .done { tell?(DiskChange(position: position, kind: .zero(count: count, unmap: unmap))) }
      return outcome
    }
  }
}
