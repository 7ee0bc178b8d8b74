internal import CLinux
public import Devices
internal import Glibc
public import GuestMemory
internal import Synchronization

/// The disk of a secondary. Its file is the disk as of the last loaded checkpoint, but for requests that were in flight there. What the primary changes is kept until
/// the checkpoint of that epoch is loaded; what the secondary's own guest changes goes to an overlay, which each load throws
/// away and a takeover makes part of the file.
public final class FollowerDisk: ByteDisk {
  private static let blockSize: UInt64 = 4096

  private struct State {
    /// Blocks that the overlay has.
    var present: Set<UInt64> = []
    /// The overlay is part of the file: the guest works on the file alone.
    var serves = false
  }

  private struct Kept {
    var changes: [(epoch: UInt64, change: DiskChange)] = []
    var weight = 0
  }

  private let file: DiskFile
  /// An unlinked file; block n of the disk at its place.
  private let overlay: CInt
  /// Held while the file or the overlay is worked on, which may have to wait for the medium.
  private let state = Mutex(State())
  /// What the primary has changed and is not in the file; never held for long.
  private let kept = Mutex(Kept())
  /// The file was written to and not made durable since.
  private let unsynced = Atomic(false)
  /// Why it could not be made durable: Linux tells of it once. An errno, or 0.
  private let syncError = Atomic<CInt>(0)
  /// Bytes of the primary's changes that are kept at most.
  public let limit: Int

  public init(_ file: DiskFile, limit: Int = 256 << 20) throws(HostError) {
    self.file = file
    self.limit = limit
    overlay = unsafe lx_memfd_plain("disk-overlay")
    guard overlay >= 0 else { throw HostError(operation: "memfd_create", errno: -overlay) }
  }

  deinit { lx_close(overlay) }

  public var isReadOnly: Bool { file.isReadOnly }
  public var capacity: UInt64 { file.capacity }

  // MARK: The primary's changes

  /// Keeps a change of the primary's epoch; false when it is out of the disk's range, or more is kept than the limit
  /// allows.
  public func keep(_ change: DiskChange, epoch: UInt64) -> Bool {
    guard fits(change) else { return false }
    return kept.withLock { kept in
      guard kept.weight + change.weight <= limit else { return false }
      kept.changes.append((epoch, change))
      kept.weight += change.weight
      return true
    }
  }

  /// Whether a change lies within the disk.
  public func fits(_ change: DiskChange) -> Bool {
    let count: UInt64 =
      switch change.kind {
      case .write(let bytes): UInt64(bytes.count)
      case .discard(let count), .zero(let count, _): count
      }
    return change.position <= capacity && count <= capacity - change.position
  }

  /// Makes a change at once: while the disk is copied for the first time, and there is nothing yet to keep it from.
  /// - Returns: 0 or an errno.
  public func make(_ change: DiskChange) -> CInt { state.withLock { _ in apply(change) } }

  /// Changes the file to what it was for the primary at the end of `epoch`, and forgets the overlay. The guest stands
  /// still.
  /// - Returns: 0 or an errno.
  public func load(epoch: UInt64) -> CInt {
    // The file is written without the lock: meanwhile more is kept.
    let due = kept.withLock { kept in
      // Epochs ascend, so these are the first.
      let due = kept.changes.prefix { $0.epoch <= epoch }.map(\.change)
      kept.changes.removeFirst(due.count)
      for change in due { kept.weight -= change.weight }
      return due
    }
    for change in due {
      let error = apply(change)
      guard error == 0 else { return error }
      FaultPoints.pass(.diskWritten)
    }
    return state.withLock { state in
      state.present.removeAll(keepingCapacity: true)
      return max(syncError.load(ordering: .acquiring), -lx_ftruncate(overlay, 0))
    }
  }

  var isUnsynced: Bool { unsynced.load(ordering: .relaxed) }

  /// Makes durable what was loaded; while the guest runs. The next load or the takeover says when it could not be done.
  func sync() {
    guard unsynced.exchange(false, ordering: .acquiringAndReleasing) else { return }
    if case .failed(let error) = file.flush() { syncError.store(error, ordering: .releasing) }
  }

  /// Makes the overlay part of the file and everything durable; forgets the unfinished epoch. From then on the guest works
  /// on the file. The guest stands still.
  /// - Returns: 0 or an errno.
  public func takeOver() -> CInt {
    state.withLock { state in
      var block = [UInt8](repeating: 0, count: Int(Self.blockSize))
      for number in state.present.sorted() {
        let position = number * Self.blockSize
        let count = Int(min(Self.blockSize, capacity - position))
        if block.count != count { block = [UInt8](repeating: 0, count: count) }
        let got = unsafe block.withUnsafeMutableBytes {
          unsafe lx_pread(overlay, $0.baseAddress, $0.count, Int64(position))
        }
        guard got == count else { return EIO }
        let error = file.put(block, at: position)
        guard error == 0 else { return error }
      }
      state.present = []
      kept.withLock { $0 = Kept() }
      _ = lx_ftruncate(overlay, 0)
      if case .failed(let error) = file.flush() { return error }
      state.serves = syncError.load(ordering: .acquiring) == 0
      return syncError.load(ordering: .acquiring)
    }
  }

  private func apply(_ change: DiskChange) -> CInt {
    if FaultPoints.failsDiskWrite { return ENOSPC }
    unsynced.store(true, ordering: .releasing)
    let outcome: DiskOutcome =
      switch change.kind {
      case .write(let bytes):
        switch file.put(bytes, at: change.position) {
        case 0: .done
        case let error: .failed(error)
        }
      case .discard(let count): file.discard(position: change.position, count: count)
      case .zero(let count, let unmap): file.writeZeroes(position: change.position, count: count, unmap: unmap)
      }
    if case .failed(let error) = outcome { return error }
    return 0
  }

  // MARK: ByteDisk, once it serves

  public func copy(into bytes: inout [UInt8], from position: UInt64) -> CInt {
    state.withLock { $0.serves } ? file.copy(into: &bytes, from: position) : EBUSY
  }

  public func put(_ bytes: [UInt8], at position: UInt64) -> CInt {
    state.withLock { $0.serves } ? file.put(bytes, at: position) : EBUSY
  }

  public func data(from position: UInt64) -> Range<UInt64>? {
    state.withLock { $0.serves } ? file.data(from: position) : nil
  }

  // MARK: Disk

  public func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    if nowait {
      return state.withLockIfAvailable { state in
        guard state.serves || !touchesOverlay(position, count, state) else { return .wouldBlock }
        return file.read(memory, buffers, count: count, position: position, nowait: true)
      } ?? .wouldBlock
    }
    return state.withLock { state in
      guard !state.serves, touchesOverlay(position, count, state) else {
        return file.read(memory, buffers, count: count, position: position, nowait: false)
      }
      var bytes = [UInt8](repeating: 0, count: Int(count))
      let error = contents(&bytes, position, state)
      guard error == 0 else { return .failed(error) }
      unsafe bytes.withUnsafeBytes { _ = unsafe memory.scatter($0, to: buffers) }
      return .done
    }
  }

  public func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    if nowait {
      // Blocks written in part are completed from the file, which may have to wait.
      return state.withLockIfAvailable { state in
        guard state.serves else { return .wouldBlock }
        return file.write(memory, buffers, offset: offset, count: count, position: position, nowait: true)
      } ?? .wouldBlock
    }
    return state.withLock { state in
      if state.serves {
        return file.write(memory, buffers, offset: offset, count: count, position: position, nowait: false)
      }
      var bytes = [UInt8](repeating: 0, count: Int(count))
      let got = unsafe bytes.withUnsafeMutableBytes { unsafe memory.gather(buffers, offset: offset, into: $0) }
      guard got == Int(count) else { return .failed(EFAULT) }
      return overlay(bytes, at: position, &state)
    }
  }

  /// What the overlay holds is in memory; the file was made durable by whoever wrote it.
  public func flush() -> DiskOutcome { state.withLock { $0.serves } ? file.flush() : .done }

  public func discard(position: UInt64, count: UInt64) -> DiskOutcome {
    // Its contents need not be kept, but may be.
    state.withLock { $0.serves } ? file.discard(position: position, count: count) : .done
  }

  public func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome {
    state.withLock { state in
      if state.serves { return file.writeZeroes(position: position, count: count, unmap: unmap) }
      var at = position
      while at < position + count {
        let size = min(1 << 20, position + count - at)
        let outcome = overlay([UInt8](repeating: 0, count: Int(size)), at: at, &state)
        guard outcome == .done else { return outcome }
        at += size
      }
      return .done
    }
  }

  private func touchesOverlay(_ position: UInt64, _ count: UInt64, _ state: State) -> Bool {
    guard count > 0, !state.present.isEmpty else { return false }
    return (position / Self.blockSize...(position + count - 1) / Self.blockSize).contains { state.present.contains($0) }
  }

  /// Reads through the overlay, block by block.
  private func contents(_ bytes: inout [UInt8], _ position: UInt64, _ state: State) -> CInt {
    let error = file.copy(into: &bytes, from: position)
    guard error == 0 else { return error }
    var at = position
    let end = position + UInt64(bytes.count)
    while at < end {
      let block = at / Self.blockSize
      let stop = min(end, (block + 1) * Self.blockSize)
      if state.present.contains(block) {
        let got = unsafe bytes.withUnsafeMutableBytes { buffer in
          let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[Int(at - position)..<Int(stop - position)])
          return unsafe lx_pread(overlay, part.baseAddress, part.count, Int64(at))
        }
        guard got == Int(stop - at) else { return EIO }
      }
      at = stop
    }
    return 0
  }

  private func overlay(_ bytes: [UInt8], at position: UInt64, _ state: inout State) -> DiskOutcome {
    guard !bytes.isEmpty else { return .done }
    let end = position + UInt64(bytes.count)
    // Blocks that are changed in part are completed from the file first.
    for block in [position / Self.blockSize, (end - 1) / Self.blockSize] where !state.present.contains(block) {
      let start = block * Self.blockSize
      var whole = [UInt8](repeating: 0, count: Int(min(Self.blockSize, capacity - start)))
      let error = file.copy(into: &whole, from: start)
      guard error == 0, put(whole, at: start) else { return .failed(error == 0 ? EIO : error) }
      state.present.insert(block)
    }
    guard put(bytes, at: position) else { return .failed(ENOSPC) }
    for block in position / Self.blockSize...(end - 1) / Self.blockSize { state.present.insert(block) }
    return .done
  }

  private func put(_ bytes: [UInt8], at position: UInt64) -> Bool {
    unsafe bytes.withUnsafeBytes { unsafe lx_pwrite(overlay, $0.baseAddress, $0.count, Int64(position)) } == bytes.count
  }
}
