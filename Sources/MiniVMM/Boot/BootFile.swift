internal import CLinux
internal import Glibc
internal import GuestMemory

/// Reading kernels and initrds, with the size known and bounded before anything is allocated or overwritten.
enum BootFile {
  /// Size of an open file that is to fit into `limit` bytes.
  static func size(_ file: BootError.File, _ descriptor: CInt, limit: UInt64) throws(BootError) -> UInt64 {
    let size = lx_file_size(descriptor)
    guard size >= 0 else { throw .unreadable(file, errno: Int32(-size)) }
    guard size > 0 else { throw .empty(file) }
    guard UInt64(size) <= limit else { throw .tooLarge(file, bytes: UInt64(size), limit: limit) }
    return UInt64(size)
  }

  /// The whole file.
  static func bytes(_ file: BootError.File, _ descriptor: CInt, limit: UInt64) throws(BootError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Int(try size(file, descriptor, limit: limit)))
    let error = unsafe bytes.withUnsafeMutableBytes { unsafe read(descriptor, into: $0) }
    guard error == 0 else { throw .unreadable(file, errno: error) }
    return bytes
  }

  /// The whole file, `count` bytes, into guest RAM.
  static func load(
    _ file: BootError.File, _ descriptor: CInt, count: UInt64, into memory: GuestMemory, at address: UInt64
  ) throws(BootError) {
    guard let host = unsafe memory.hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    let error = unsafe read(descriptor, into: UnsafeMutableRawBufferPointer(start: host, count: Int(count)))
    memory.markDirty(address: address, count: count)
    guard error == 0 else { throw .unreadable(file, errno: error) }
  }

  /// 0, or an errno; EIO when the file became shorter meanwhile.
  private static func read(_ descriptor: CInt, into buffer: UnsafeMutableRawBufferPointer) -> Int32 {
    var done = 0
    while done < buffer.count {
      let got = unsafe lx_pread(
        descriptor, UnsafeMutableRawBufferPointer(rebasing: buffer[done...]).baseAddress, buffer.count - done,
        Int64(done))
      if got == -Int(EINTR) { continue }
      guard got > 0 else { return got == 0 ? EIO : Int32(-got) }
      done += got
    }
    return 0
  }
}
