internal import CLinux
public import Devices
internal import Glibc
public import GuestMemory
internal import VirtioLayout

/// Why a snapshot could not be written or was refused.
public enum SnapshotError: Error, Equatable, Sendable {
  case write(errno: Int32)
  case read(errno: Int32)
  /// Guest RAM took no more: the host is out of memory.
  case memory(errno: Int32)
  case notASnapshot
  case unsupportedVersion(UInt32)
  /// Ends before its own end mark.
  case truncated
  case checksum
  /// Guest RAM of another size than the machine's.
  case memorySize(saved: UInt64, machine: UInt64)
  case stateTooLong(UInt64)
  case tooManyDisks(UInt32)
  /// Which disk is not the saved machine's, and the cure.
  case disks(String)
  case badPageRun(first: UInt64, count: UInt64)
}

extension SnapshotError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .write(let error):
      "cannot write the snapshot: \(unsafe String(cString: lx_strerror(error))); free space or choose another place"
    case .read(let error): "cannot read the snapshot: \(unsafe String(cString: lx_strerror(error)))"
    case .memory(let error):
      "cannot fill guest RAM: \(unsafe String(cString: lx_strerror(error))); free memory on this host"
    case .notASnapshot: "this is not a minivmm snapshot; give a file that `minivmm snapshot` wrote"
    case .unsupportedVersion(let version):
      "snapshot format \(version) is not read by this build (it reads \(SnapshotFile.version)); take the snapshot again"
    case .truncated: "the snapshot ends early; its copy is incomplete, copy it again"
    case .checksum: "the snapshot's checksum is wrong; the file is damaged, take or copy it again"
    case .memorySize(let saved, let machine):
      "the snapshot holds \(saved >> 20) MiB of RAM, the machine has \(machine >> 20)"
    case .stateTooLong(let count): "the snapshot claims \(count) bytes of machine state; it is damaged"
    case .tooManyDisks(let count): "the snapshot claims \(count) disks; it is damaged"
    case .disks(let difference): difference
    case .badPageRun(let first, let count):
      "the snapshot names pages \(first)+\(count) outside guest RAM; it is damaged"
    }
  }
}

/// One file with a stopped machine in it: header, disks' identities, machine state, every RAM page that is not all zeros, CRC-32C.
///
///     magic "MiniVMM\0"  version:4  disks:4  RAM bytes:8  state bytes:8
///     { capacity:8  flags:4  CRC-32C of its beginning:4  serial:20  0:4 }…  state
///     { first page:8  pages:8  contents }…  ~0:8  0:8  CRC-32C of all before:4
///
/// Numbers are little-endian. A disk's flags are 1 (read-only) and 2 (its beginning is known). Pages are counted in the order of
/// guest-physical addresses, the hole left out.
public enum SnapshotFile {
  public static let version: UInt32 = 2
  static let diskLimit: UInt32 = 64
  private static let diskSize = 40
  static let stateLimit: UInt64 = 16 << 20
  private static let magic: UInt64 = 0x004d_4d56_696e_694d  // "MiniVMM\0"
  private static let endMark = ~UInt64(0)
  private static let headerSize = 32
  /// Longest run of pages handled at once, which bounds how much is zero-checked ahead of being written.
  private static let runLimit = 256

  /// Writes a snapshot at the start of `descriptor`. The machine must stand still; nothing of it changes.
  /// - Returns: the file's size in bytes. It is not yet durable: fsync is the caller's.
  public static func write(
    state: [UInt8], disks: [DiskIdentity] = [], memory: GuestMemory, to descriptor: CInt
  ) throws(SnapshotError) -> UInt64 {
    var output = Output(descriptor: descriptor)
    var header: [UInt8] = []
    append(magic, to: &header)
    append(version, to: &header)
    append(UInt32(disks.count), to: &header)
    append(memory.size, to: &header)
    append(UInt64(state.count), to: &header)
    for disk in disks { append(disk, to: &header) }
    try output.write(header + state)
    let mapping = unsafe memory.mapping
    var page = 0
    while let data = memory.touchedPages(from: page) {
      page = data.lowerBound
      while page < data.upperBound {
        guard unsafe !isZero(mapping, page) else {
          page += 1
          continue
        }
        let first = page
        repeat { page += 1 } while unsafe page < data.upperBound && page - first < runLimit && !isZero(mapping, page)
        var run: [UInt8] = []
        append(UInt64(first), to: &run)
        append(UInt64(page - first), to: &run)
        try output.write(run)
        try unsafe output.write(UnsafeRawBufferPointer(rebasing: mapping[first * 4096..<page * 4096]))
      }
    }
    var end: [UInt8] = []
    append(endMark, to: &end)
    append(UInt64(0), to: &end)
    try output.write(end)
    var checksum: [UInt8] = []
    append(output.checksum, to: &checksum)
    try output.write(checksum)
    return output.count
  }

  /// What the machine to restore into must have.
  public struct Header: Sendable {
    /// Bytes of RAM.
    public let memorySize: UInt64
    public let disks: [DiskIdentity]
    let stateSize: Int
  }

  /// What a snapshot says of its machine, not yet checked against the file's checksum.
  public static func header(of descriptor: CInt) throws(SnapshotError) -> Header {
    var input = Input(descriptor: descriptor)
    return try readHeader(&input)
  }

  /// Reads a snapshot into fresh, zeroed RAM and returns the machine state. The machine must not run before this has
  /// returned: only then is the checksum known to be right.
  public static func read(from descriptor: CInt, into memory: GuestMemory) throws(SnapshotError) -> [UInt8] {
    var input = Input(descriptor: descriptor)
    let header = try readHeader(&input)
    guard header.memorySize == memory.size else {
      throw .memorySize(saved: header.memorySize, machine: memory.size)
    }
    let state = try input.bytes(header.stateSize)
    let pages = UInt64(memory.pageCount)
    let contents = unsafe memory.contents
    while true {
      let run = try input.bytes(16)
      let first = number(UInt64.self, run, 0)
      let count = number(UInt64.self, run, 8)
      if first == endMark, count == 0 { break }
      guard first < pages, count > 0, count <= pages - first else { throw .badPageRun(first: first, count: count) }
      let bytes = unsafe contents[Int(first) * 4096..<Int(first + count) * 4096]
      // A piece at a time: its checksum is made while it is in the processor's caches.
      for start in unsafe stride(from: bytes.startIndex, to: bytes.endIndex, by: 64 * 4096) {
        let piece = unsafe bytes[start..<min(start + 64 * 4096, bytes.endIndex)]
        try unsafe input.read(into: UnsafeMutableRawBufferPointer(rebasing: piece))
      }
      memory.dirty.insert(first: Int(first), last: Int(first + count) - 1)
    }
    let expected = input.checksum
    guard number(UInt32.self, try input.bytes(4), 0) == expected else { throw .checksum }
    return state
  }

  private static func readHeader(_ input: inout Input) throws(SnapshotError) -> Header {
    let header: [UInt8]
    do throws(SnapshotError) { header = try input.bytes(headerSize) } catch {
      throw error == .truncated ? .notASnapshot : error
    }
    guard number(UInt64.self, header, 0) == magic else { throw .notASnapshot }
    let found = number(UInt32.self, header, 8)
    guard found == version else { throw .unsupportedVersion(found) }
    let memorySize = number(UInt64.self, header, 16)
    let stateSize = number(UInt64.self, header, 24)
    guard stateSize <= stateLimit else { throw .stateTooLong(stateSize) }
    let diskCount = number(UInt32.self, header, 12)
    guard diskCount <= diskLimit else { throw .tooManyDisks(diskCount) }
    var disks: [DiskIdentity] = []
    for _ in 0..<diskCount { disks.append(disk(try input.bytes(diskSize))) }
    return Header(memorySize: memorySize, disks: disks, stateSize: Int(stateSize))
  }

  private static func append(_ disk: DiskIdentity, to bytes: inout [UInt8]) {
    append(disk.capacity, to: &bytes)
    append((disk.isReadOnly ? 1 : 0) | (disk.beginning == nil ? 0 : 2) as UInt32, to: &bytes)
    append(disk.beginning ?? 0, to: &bytes)
    let serial = disk.serial.prefix(BlockRequestHeader.idLength)
    bytes += serial + [UInt8](repeating: 0, count: BlockRequestHeader.idLength + 4 - serial.count)
  }

  private static func disk(_ bytes: [UInt8]) -> DiskIdentity {
    let flags = number(UInt32.self, bytes, 8)
    let serial = bytes[16..<16 + BlockRequestHeader.idLength].prefix { $0 != 0 }
    return DiskIdentity(
      capacity: number(UInt64.self, bytes, 0), isReadOnly: flags & 1 != 0, serial: Array(serial),
      beginning: flags & 2 != 0 ? number(UInt32.self, bytes, 12) : nil)
  }

  // MARK: Pieces

  private static func isZero(_ mapping: UnsafeMutableRawBufferPointer, _ page: Int) -> Bool {
    guard let base = mapping.baseAddress else { return true }
    return unsafe lx_is_zero(base + page * 4096, 4096) != 0
  }

  private static func append<T: FixedWidthInteger>(_ value: T, to bytes: inout [UInt8]) {
    for index in 0..<T.bitWidth / 8 { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * index))) }
  }

  private static func number<T: FixedWidthInteger>(_: T.Type, _ bytes: [UInt8], _ offset: Int) -> T {
    (0..<T.bitWidth / 8).reduce(0) { $0 | T(bytes[offset + $1]) << (8 * $1) }
  }

  private struct Output {
    let descriptor: CInt
    private(set) var count: UInt64 = 0
    private(set) var checksum: UInt32 = 0

    init(descriptor: CInt) { self.descriptor = descriptor }

    mutating func write(_ bytes: [UInt8]) throws(SnapshotError) {
      var failure: SnapshotError?
      unsafe bytes.withUnsafeBytes { source in
        do throws(SnapshotError) { try unsafe write(source) } catch { failure = error }
      }
      if let failure { throw failure }
    }

    mutating func write(_ bytes: UnsafeRawBufferPointer) throws(SnapshotError) {
      guard let base = bytes.baseAddress else { return }
      checksum = unsafe lx_crc32c(checksum, base, bytes.count)
      var done = 0
      while done < bytes.count {
        let result = unsafe lx_pwrite(descriptor, base + done, bytes.count - done, Int64(count) + Int64(done))
        if result == -Int(EINTR) { continue }
        guard result > 0 else { throw .write(errno: result == 0 ? EIO : Int32(truncatingIfNeeded: -result)) }
        done += result
      }
      count += UInt64(done)
    }
  }

  private struct Input {
    let descriptor: CInt
    private var position: Int64 = 0
    private(set) var checksum: UInt32 = 0

    init(descriptor: CInt) { self.descriptor = descriptor }

    mutating func bytes(_ count: Int) throws(SnapshotError) -> [UInt8] {
      var bytes = [UInt8](repeating: 0, count: count)
      try read(into: &bytes, count: count)
      return bytes
    }

    /// Fills the first `count` bytes.
    mutating func read(into bytes: inout [UInt8], count: Int) throws(SnapshotError) {
      var failure: SnapshotError?
      unsafe bytes.withUnsafeMutableBytes { target in
        do throws(SnapshotError) {
          try unsafe read(into: UnsafeMutableRawBufferPointer(rebasing: target[..<count]))
        } catch { failure = error }
      }
      if let failure { throw failure }
    }

    mutating func read(into target: UnsafeMutableRawBufferPointer) throws(SnapshotError) {
      guard let base = target.baseAddress else { return }
      var done = 0
      while done < target.count {
        let result = unsafe lx_pread(descriptor, base + done, target.count - done, position + Int64(done))
        if result == -Int(EINTR) { continue }
        // The kernel had no page for it.
        if result == -Int(EFAULT) { throw .memory(errno: ENOMEM) }
        guard result >= 0 else { throw .read(errno: Int32(truncatingIfNeeded: -result)) }
        guard result > 0 else { throw .truncated }
        done += result
      }
      checksum = unsafe lx_crc32c(checksum, base, done)
      position += Int64(done)
    }
  }
}
