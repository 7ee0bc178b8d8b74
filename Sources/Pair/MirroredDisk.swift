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
  /// Whether the other side is so far behind that writes are to wait.
  private let isBehind = Mutex<(@Sendable () -> Bool)?>(nil)
  private let hurries = Atomic(false)

  public init(_ file: any ByteDisk) {
    self.file = file
    order = Mutex(nil)
  }

  /// Tells of every change from here on; nil ends that. A write that follows waits, on a worker, while `isBehind` says so:
  /// the other side can't keep changes without end.
  public func mirror(to tell: (@Sendable (DiskChange) -> Void)?, waitingWhile isBehind: (@Sendable () -> Bool)? = nil) {
    order.withLock { $0 = tell }
    self.isBehind.withLock { $0 = isBehind }
  }

  /// Writes do not wait, or no longer: somebody who pauses or resets the guest waits for them, and no checkpoint that would let the other
  /// side catch up is taken meanwhile.
  public func hurry(_ hurries: Bool) { self.hurries.store(hurries, ordering: .sequentiallyConsistent) }

  private func awaitOther() {
    while !hurries.load(ordering: .sequentiallyConsistent), isBehind.withLock({ $0 })?() == true {
      HostThread.waitReadable(-1, timeoutMilliseconds: 1)
    }
  }

  /// Bytes of a hole that are told as one change: the other side makes them at one go, and hears nothing meanwhile.
  private static let holeLimit: UInt64 = 256 << 20
  /// Bytes of a write that are told as one change: a message holds no more than ``Message/limit``, and a request may.
  private static let pieceLimit: UInt64 = 4 << 20

  /// Tells of the contents of a range as if they had just been written, in turn with the guest's own changes: for the
  /// first copy of a disk. A hole is told as zeros, because the other file may hold anything there.
  /// - Parameter limit: bytes of data that are told at the most.
  /// - Returns: where the range ends that was told; nil at the end of the disk. Throws with an errno on a failure.
  public func tellContents(from position: UInt64, limit: Int) throws(HostError) -> UInt64? {
    var failure: HostError?
    let next: UInt64? = order.withLock { tell in
      guard let tell, position < capacity else { return nil }
      let extent = file.data(from: position) ?? capacity..<capacity
      guard extent.lowerBound <= position else {
        let count = min(extent.lowerBound - position, Self.holeLimit)
        tell(DiskChange(position: position, kind: .zero(count: count, unmap: true)))
        return position + count
      }
      var bytes = [UInt8](repeating: 0, count: Int(min(UInt64(limit), min(extent.upperBound, capacity) - position)))
      let error = file.copy(into: &bytes, from: position)
      guard error == 0 else {
        failure = HostError(operation: "reading the disk", errno: error)
        return nil
      }
      tell(DiskChange(position: position, kind: .write(bytes)))
      return position + UInt64(bytes.count)
    }
    if let failure { throw failure }
    return next
  }

  public var isReadOnly: Bool { file.isReadOnly }
  public var capacity: UInt64 { file.capacity }

  public func copy(into bytes: inout [UInt8], from position: UInt64) -> CInt { file.copy(into: &bytes, from: position) }

  public func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { file.read(memory, buffers, count: count, position: position, nowait: nowait) }

  public func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    // Whoever holds the order may wait for the medium.
    if nowait {
      return order.withLockIfAvailable { tell in
        guard tell == nil else { return .wouldBlock }
        return file.write(memory, buffers, offset: offset, count: count, position: position, nowait: true)
      } ?? .wouldBlock
    }
    var done: UInt64 = 0
    repeat {
      awaitOther()
      let (offset, position) = (offset + done, position + done)
      let outcome: DiskOutcome = order.withLock { tell in
        guard let tell else {
          defer { done = count }
          return file.write(memory, buffers, offset: offset, count: count - done, position: position, nowait: false)
        }
        // A copy first: the guest may change its buffer meanwhile, and both files must get the same bytes.
        var bytes = [UInt8](repeating: 0, count: Int(min(count - done, Self.pieceLimit)))
        let got = unsafe bytes.withUnsafeMutableBytes { unsafe memory.gather(buffers, offset: offset, into: $0) }
        guard got == bytes.count else { return .failed(EFAULT) }
        let error = FaultPoints.failsDiskWrite ? ENOSPC : file.put(bytes, at: position)
        guard error == 0 else { return .failed(error) }
        tell(DiskChange(position: position, kind: .write(bytes)))
        done += UInt64(bytes.count)
        return .done
      }
      guard outcome == .done else { return outcome }
    } while done < count
    return .done
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
