package import CLinux
internal import Glibc

/// Pieces of guest RAM in order, each checked to lie inside one region when it was added: one direction of a descriptor
/// chain. A value; keeps its capacity when emptied, so a queue that reuses one allocates nothing per request.
public struct GuestBuffers: Sendable {
  public struct Piece: Sendable, Equatable {
    public let address: UInt64
    public let count: UInt64
  }

  public private(set) var pieces: [Piece] = []
  /// Sum of all pieces, in bytes.
  public private(set) var count: UInt64 = 0

  public init() {}

  public mutating func removeAll() {
    pieces.removeAll(keepingCapacity: true)
    count = 0
  }

  /// Adds a piece; false when it is not inside one region of `memory`, or the sum would pass 4 GiB.
  @inline(__always)
  public mutating func append(address: UInt64, count: UInt64, in memory: GuestMemory) -> Bool {
    // A range inside RAM is short enough for the sum not to overflow.
    guard memory.fileOffset(of: address, count: count) != nil, self.count + count <= UInt64(UInt32.max) else {
      return false
    }
    pieces.append(Piece(address: address, count: count))
    self.count += count
    return true
  }
}

extension GuestBuffers {
  /// Calls `body` with each piece of `offset ..< offset + count`, in order, until it says false.
  /// - Returns: whether it never did, and there is as much.
  public func allSatisfy(offset: UInt64, count: UInt64, _ body: (Piece) -> Bool) -> Bool {
    var (skip, left) = (offset, count)
    for piece in pieces where left > 0 {
      if skip >= piece.count {
        skip -= piece.count
        continue
      }
      let length = min(piece.count - skip, left)
      guard body(Piece(address: piece.address + skip, count: length)) else { return false }
      left -= length
      skip = 0
    }
    return left == 0
  }
}

extension GuestMemory {
  /// Calls `body` with each contiguous host range of `buffers[offset ..< offset + count]`, in order, clipped to what
  /// there is. Returns the bytes visited.
  @inline(__always)
  private func visit(
    _ buffers: GuestBuffers, offset: UInt64, count: UInt64,
    _ body: (UnsafeMutableRawPointer, _ length: Int, _ address: UInt64) -> Void
  ) -> Int {
    var skip = offset
    var left = count
    for piece in buffers.pieces {
      if left == 0 { break }
      if skip >= piece.count {
        skip -= piece.count
        continue
      }
      let length = min(piece.count - skip, left)
      // Checked when appended; RAM never shrinks.
      guard let host = unsafe hostPointer(at: piece.address + skip, count: length) else { break }
      unsafe body(host, Int(length), piece.address + skip)
      left -= length
      skip = 0
    }
    return Int(count - left)
  }

  /// Copies bytes out of the buffers, from `offset` on; returns how many there were.
  public func gather(
    _ buffers: GuestBuffers, offset: UInt64 = 0, into destination: UnsafeMutableRawBufferPointer
  ) -> Int {
    guard var target = destination.baseAddress else { return 0 }
    return unsafe visit(buffers, offset: offset, count: UInt64(destination.count)) { host, length, _ in
      unsafe target.copyMemory(from: host, byteCount: length)
      unsafe target += length
    }
  }

  /// A value out of the buffers at `offset`, read once; nil when they are shorter.
  @inline(__always)
  public func gather<T: BitwiseCopyable>(
    _ type: T.Type, _ buffers: GuestBuffers, offset: UInt64 = 0
  ) -> T? {
    unsafe withUnsafeTemporaryAllocation(
      byteCount: MemoryLayout<T>.size, alignment: MemoryLayout<T>.alignment
    ) { scratch in
      guard unsafe gather(buffers, offset: offset, into: scratch) == MemoryLayout<T>.size else { return nil }
      return unsafe scratch.load(as: type)
    }
  }

  /// Copies bytes into the buffers from `offset` on and marks their pages; returns how many fitted.
  @discardableResult
  public func scatter(
    _ source: UnsafeRawBufferPointer, to buffers: GuestBuffers, offset: UInt64 = 0
  ) -> Int {
    guard var from = source.baseAddress else { return 0 }
    return unsafe visit(buffers, offset: offset, count: UInt64(source.count)) { host, length, address in
      unsafe host.copyMemory(from: from, byteCount: length)
      unsafe from += length
      markDirty(address: address, count: UInt64(length))
    }
  }

  /// Copies a value into the buffers at `offset`; false when it does not fit.
  @discardableResult
  public func scatter<T: BitwiseCopyable>(_ value: T, to buffers: GuestBuffers, offset: UInt64) -> Bool {
    unsafe withUnsafeBytes(of: value) {
      unsafe scatter($0, to: buffers, offset: offset) == MemoryLayout<T>.size
    }
  }

  /// Marks `count` bytes of the buffers from `offset` on as written: for whoever wrote through ``withVectors``.
  public func markDirty(_ buffers: GuestBuffers, offset: UInt64 = 0, count: UInt64) {
    _ = unsafe visit(buffers, offset: offset, count: count) { _, length, address in
      markDirty(address: address, count: UInt64(length))
    }
  }

  /// The buffers as I/O vectors for readv and its kin, with room for one vector in front (a header outside the guest)
  /// when `prefix` is given. Nothing is allocated on the heap.
  package func withVectors<R>(
    _ buffers: GuestBuffers, offset: UInt64 = 0, count: UInt64, prefix: iovec? = nil,
    _ body: (UnsafeMutableBufferPointer<iovec>) -> R
  ) -> R {
    unsafe withUnsafeTemporaryAllocation(of: iovec.self, capacity: buffers.pieces.count + 1) { vectors in
      var used = 0
      if let prefix = unsafe prefix {
        unsafe vectors.initializeElement(at: 0, to: prefix)
        used = 1
      }
      _ = unsafe visit(buffers, offset: offset, count: count) { host, length, _ in
        unsafe vectors.initializeElement(at: used, to: iovec(iov_base: host, iov_len: length))
        used += 1
      }
      return unsafe body(UnsafeMutableBufferPointer(rebasing: vectors[..<used]))
    }
  }
}
