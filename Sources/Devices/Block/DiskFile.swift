internal import CLinux
internal import Glibc
public import GuestMemory
internal import Synchronization

/// Why a disk could not be opened. The message says what to do about it.
public enum DiskError: Error, Equatable, Sendable {
  case open(path: String, errno: Int32)
  /// Neither a regular file nor a block device.
  case notADisk(path: String)
  case empty(path: String)
  /// An image of a format that is not raw, by what it holds.
  case format(path: String, ImageFormat)
  /// Another process holds a lock that excludes ours.
  case busy(path: String)
  case system(path: String, operation: String, errno: Int32)
}

extension DiskError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .open(let path, let error):
      "cannot open disk \(path): \(unsafe String(cString: lx_strerror(error))); "
        + (error == ENOENT
          ? "create it (truncate -s 1G \(path)) or correct the path" : "check its permissions, or add ,ro")
    case .notADisk(let path): "disk \(path) is neither a file nor a block device; give a raw image"
    case .empty(let path): "disk \(path) is smaller than one sector (512 bytes); give a raw image with a size"
    case .format(let path, let format):
      "disk \(path) is a \(format.name) file, not a raw image; run: \(format.command(path)), or insist with "
        + "\(path),format=raw if its guest has written that to a raw disk"
    case .busy(let path): "disk \(path) is in use by another process; stop it, or open both with ,ro"
    case .system(let path, let operation, let error):
      "\(operation) on disk \(path): \(unsafe String(cString: lx_strerror(error))); try another file system"
    }
  }
}

/// A raw image file or block device. Calls may come from several threads; the kernel keeps the file position out of it.
public final class DiskFile: ByteDisk {
  public let isReadOnly: Bool
  /// Capacity in bytes, a multiple of 512, fixed when opened.
  public let capacity: UInt64
  private let descriptor: CInt
  /// The file system knows no attempts without waiting (EOPNOTSUPP), as ext4 for buffered writes.
  private let refusesReads = Atomic(false)
  private let refusesWrites = Atomic(false)

  /// Opens and locks the image: writers exclude everybody, readers exclude writers.
  /// - Parameter isRaw: take it for a raw image whatever it holds; otherwise an image of another format is refused.
  public init(path: String, readOnly: Bool, isRaw: Bool = false) throws(DiskError) {
    let fd = unsafe lx_open(path, readOnly ? O_RDONLY : O_RDWR, 0)
    guard fd >= 0 else { throw .open(path: path, errno: -fd) }
    let size = lx_file_size(fd)
    let lock = lx_lock_file(fd, readOnly ? 0 : 1)
    if size < 512 || lock < 0 {
      lx_close(fd)
      if size == Int64(-EINVAL) { throw .notADisk(path: path) }
      if size < 0 { throw .system(path: path, operation: "fstat", errno: Int32(truncatingIfNeeded: -size)) }
      if size < 512 { throw .empty(path: path) }
      if lock == -EAGAIN || lock == -EACCES { throw .busy(path: path) }
      throw .system(path: path, operation: "lock", errno: -lock)
    }
    if !isRaw {
      do throws(DiskError) { try Self.refuseOtherFormats(fd, size: size, path: path) } catch {
        lx_close(fd)
        throw error
      }
    }
    descriptor = fd
    isReadOnly = readOnly
    capacity = UInt64(size) & ~511
  }

  private static func refuseOtherFormats(_ descriptor: CInt, size: Int64, path: String) throws(DiskError) {
    var bytes = [UInt8](repeating: 0, count: 2 * ImageFormat.probeSize)
    let half = ImageFormat.probeSize
    for (place, position) in [(0, 0), (half, size - Int64(half))] {
      let got = unsafe bytes.withUnsafeMutableBytes { buffer in
        let part = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[place..<place + half])
        return unsafe lx_pread(descriptor, part.baseAddress, part.count, position)
      }
      guard got == half else {
        throw .system(path: path, operation: "read", errno: got < 0 ? Int32(truncatingIfNeeded: -got) : EIO)
      }
    }
    if let format = ImageFormat(first: bytes[..<half], last: bytes[half...]) {
      throw .format(path: path, format)
    }
  }

  deinit { lx_close(descriptor) }

  /// Reads `count` bytes at `position` into `buffers`, and marks them as written: all of them, because what a failed
  /// read left behind is unknown, and here, because a request that ends in a reset has nobody else to do it.
  /// - Parameter nowait: give up with ``DiskOutcome/wouldBlock`` rather than wait for the device (page cache misses).
  public func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    if nowait, refusesReads.load(ordering: .relaxed) { return .wouldBlock }
    defer { memory.markDirty(buffers, count: count) }
    let outcome = unsafe transfer(memory, buffers, offset: 0, count: count, position: position, nowait: nowait) {
      vectors, at in
      unsafe lx_preadv(descriptor, vectors.baseAddress, CInt(vectors.count), at, nowait ? LX_NOWAIT : 0)
    }
    if nowait, outcome == .failed(EOPNOTSUPP) { refusesReads.store(true, ordering: .relaxed) }
    return outcome
  }

  /// Writes `count` bytes from `buffers`, from `offset` in them on, at `position`.
  public func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    if nowait, refusesWrites.load(ordering: .relaxed) { return .wouldBlock }
    let outcome = unsafe transfer(memory, buffers, offset: offset, count: count, position: position, nowait: nowait) {
      vectors, at in
      unsafe lx_pwritev(descriptor, vectors.baseAddress, CInt(vectors.count), at, nowait ? LX_NOWAIT : 0)
    }
    if nowait, outcome == .failed(EOPNOTSUPP) { refusesWrites.store(true, ordering: .relaxed) }
    return outcome
  }

  /// Goes on after short transfers; a transfer of nothing is the end of a file that was cut short behind our back.
  private func transfer(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool,
    _ call: (UnsafeMutableBufferPointer<iovec>, Int64) -> Int
  ) -> DiskOutcome {
    var done: UInt64 = 0
    while done < count {
      let result = unsafe memory.withVectors(buffers, offset: offset + done, count: count - done) { vectors in
        unsafe call(vectors, Int64(position + done))
      }
      if result > 0 {
        done += UInt64(result)
      } else if result == 0 {
        return .failed(EIO)
      } else if nowait, result == -Int(EAGAIN) {
        return .wouldBlock
      } else if result != -Int(EINTR) {
        return .failed(Int32(truncatingIfNeeded: -result))
      }
    }
    return .done
  }

  // MARK: Plain bytes, for those who replicate a disk

  public func copy(into bytes: inout [UInt8], from position: UInt64) -> CInt {
    var done = 0
    while done < bytes.count {
      let result = unsafe bytes.withUnsafeMutableBytes { buffer in
        let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
        return unsafe lx_pread(descriptor, rest.baseAddress, rest.count, Int64(position) + Int64(done))
      }
      if result == -Int(EINTR) { continue }
      guard result > 0 else { return result == 0 ? EIO : CInt(-result) }
      done += result
    }
    return 0
  }

  public func put(_ bytes: [UInt8], at position: UInt64) -> CInt {
    var done = 0
    while done < bytes.count {
      let result = unsafe bytes.withUnsafeBytes { buffer in
        let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer[done...])
        return unsafe lx_pwrite(descriptor, rest.baseAddress, rest.count, Int64(position) + Int64(done))
      }
      if result == -Int(EINTR) { continue }
      guard result > 0 else { return result == 0 ? EIO : CInt(-result) }
      done += result
    }
    return 0
  }

  public func data(from position: UInt64) -> Range<UInt64>? {
    guard position < capacity else { return nil }
    let start = lx_lseek(descriptor, Int64(position), SEEK_DATA)
    if start == Int64(-ENXIO) { return nil }
    // File systems and block devices that know no holes: all of it is data.
    guard start >= 0 else { return position..<capacity }
    let end = lx_lseek(descriptor, start, SEEK_HOLE)
    return UInt64(start)..<(end > start ? min(UInt64(end), capacity) : capacity)
  }

  /// Makes everything written durable.
  public func flush() -> DiskOutcome {
    let result = lx_fdatasync(descriptor)
    return result < 0 ? .failed(-result) : .done
  }

  /// Gives a range back to the file system; it reads as zeros afterwards where holes are supported, and keeps its
  /// contents elsewhere, which DISCARD allows.
  public func discard(position: UInt64, count: UInt64) -> DiskOutcome {
    let result = lx_fallocate(
      descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, Int64(position), Int64(count))
    return result < 0 && result != -EOPNOTSUPP ? .failed(-result) : .done
  }

  /// Makes a range read as zeros; with `unmap` it may be deallocated.
  public func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome {
    let mode = unmap ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
    let result = lx_fallocate(descriptor, mode, Int64(position), Int64(count))
    guard result == -EOPNOTSUPP else { return result < 0 ? .failed(-result) : .done }
    // File systems without either: plain zeros, in bounded pieces.
    return unsafe withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 4096) { zeros in
      _ = unsafe zeros.initializeMemory(as: UInt8.self, repeating: 0)
      var done: UInt64 = 0
      while done < count {
        let written = unsafe lx_pwrite(
          descriptor, zeros.baseAddress, Int(min(count - done, UInt64(zeros.count))), Int64(position + done))
        if written > 0 { done += UInt64(written) } else if written != -Int(EINTR) { return .failed(EIO) }
      }
      return .done
    }
  }
}
