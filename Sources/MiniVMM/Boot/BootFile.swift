internal import CLinux
internal import Glibc
internal import GuestMemory

/// A kernel or initrd: read in parts, straight to where they belong, so that nothing a file says decides how much is allocated.
struct BootFile {
  let kind: BootError.File
  let descriptor: CInt
  let size: UInt64

  init(_ kind: BootError.File, _ descriptor: CInt) throws(BootError) {
    let size = lx_file_size(descriptor)
    guard size >= 0 else { throw .unreadable(kind, errno: Int32(-size)) }
    guard size > 0 else { throw .empty(kind) }
    self.kind = kind
    self.descriptor = descriptor
    self.size = UInt64(size)
  }

  /// Whether `count` bytes from `offset` on are in the file.
  func has(_ count: UInt64, at offset: UInt64) -> Bool { count <= size && offset <= size - count }

  /// Up to `limit` bytes from `offset` on: fewer where the file ends.
  func bytes(at offset: UInt64, limit: Int) throws(BootError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(min(UInt64(limit), size - min(offset, size))))
    let error = unsafe bytes.withUnsafeMutableBytes { unsafe read(into: $0, at: offset) }
    guard error == 0 else { throw .unreadable(kind, errno: error) }
    return bytes
  }

  /// `count` bytes from `offset` on into guest RAM.
  func load(at offset: UInt64, count: UInt64, into memory: GuestMemory, at address: UInt64) throws(BootError) {
    guard let host = unsafe memory.hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    let error = unsafe read(into: UnsafeMutableRawBufferPointer(start: host, count: Int(count)), at: offset)
    memory.markDirty(address: address, count: count)
    guard error == 0 else { throw .unreadable(kind, errno: error) }
  }

  /// 0, or an errno; EIO when the file became shorter meanwhile.
  private func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) -> Int32 {
    var done = 0
    while done < buffer.count {
      let got = unsafe lx_pread(
        descriptor, UnsafeMutableRawBufferPointer(rebasing: buffer[done...]).baseAddress, buffer.count - done,
        Int64(offset) + Int64(done))
      if got == -Int(EINTR) { continue }
      guard got > 0 else { return got == 0 ? EIO : Int32(-got) }
      done += got
    }
    return 0
  }
}

extension [UInt8] {
  /// A little-endian field of a header. The header has been found to be long enough.
  func field<T: FixedWidthInteger>(_ offset: Int, _: T.Type = T.self) -> T {
    (0..<T.bitWidth / 8).reversed().reduce(0) { $0 << 8 | T(truncatingIfNeeded: self[offset + $1]) }
  }
}

extension GuestMemory {
  /// Whether a range, which must be inside RAM, holds this text. By its first character: memmem takes 2 ns a byte, memchr a tenth.
  func holds(_ text: StaticString, at address: UInt64, count: UInt64) -> Bool {
    guard let host = unsafe hostPointer(at: address, count: count) else { return false }
    let size = text.utf8CodeUnitCount
    var rest = unsafe UnsafeRawBufferPointer(start: host, count: Int(count))
    while rest.count >= size, let start = rest.baseAddress,
      let found = unsafe memchr(start, CInt(text.utf8Start.pointee), rest.count - size + 1)
    {
      if unsafe memcmp(found, text.utf8Start, size) == 0 { return true }
      unsafe rest = UnsafeRawBufferPointer(rebasing: rest[(UnsafeRawPointer(found) - start + 1)...])
    }
    return false
  }
}
