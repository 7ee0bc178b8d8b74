internal import CLinux
internal import Glibc
internal import Synchronization

/// Why guest RAM could not be made or touched.
public enum GuestMemoryError: Error, Equatable, Sendable {
  /// A guest-physical range that is not wholly inside one RAM region.
  case outsideRAM(address: UInt64, count: UInt64)
  /// RAM size zero, not a multiple of the page size, or more than ``GuestMemory/maximumSize``.
  case badSize(UInt64)
  case system(operation: String, errno: Int32)
}

extension GuestMemoryError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .outsideRAM(let address, let count):
      "guest range 0x\(String(address, radix: 16))+\(count) is not inside guest RAM"
    case .badSize(let size):
      "guest RAM of \(size) bytes: must be a multiple of 4096, between 1 MiB and 1 TiB"
    case .system(let operation, let error):
      "\(operation) of guest RAM: \(unsafe String(cString: lx_strerror(error))); free memory or choose a smaller --memory"
    }
  }
}

/// Guest RAM, and the one checked way to touch it.
///
/// RAM is one memfd mapped once, split by the 32-bit MMIO hole into at most two regions. Every access names a
/// guest-physical range, which must lie inside one region; every write by the VMM marks its pages in ``dirty``, after
/// the bytes are stored, so that a harvest between the two can only see the page again, never miss it.
///
/// Safe from any thread. The guest changes memory at any time: what decides something is read once, into a value.
@safe public final class GuestMemory: Sendable {
  public static let pageSize: UInt64 = 4096
  /// RAM stops here and goes on at ``highStart``; device windows live between.
  public static let holeStart: UInt64 = 0xc000_0000
  public static let highStart: UInt64 = 0x1_0000_0000
  public static let maximumSize: UInt64 = 1 << 40

  /// A range of guest-physical addresses backed by RAM.
  public struct Region: Sendable, Equatable {
    public let start: UInt64
    public let size: UInt64
    /// Offset of the region in the memfd, and in the mapping.
    public let fileOffset: UInt64
    public var end: UInt64 { start + size }
  }

  public let size: UInt64
  public let low: Region
  /// RAM above 4 GiB; size 0 when there is none.
  public let high: Region
  /// The memfd, owned by this object.
  public let descriptor: CInt
  /// Pages written by the VMM since the last harvest, by page index in the file.
  public let dirty: DirtyPages
  private nonisolated(unsafe) let base: UnsafeMutableRawPointer
  /// The memfd itself, where ``base`` is a private view of it; nil where ``base`` is the memfd.
  nonisolated(unsafe) let checkpoint: UnsafeMutableRawPointer?
  let rollBacks: Mutex<RollBacks>

  /// Makes `size` bytes of zeroed RAM.
  /// - Parameter rollsBack: the guest gets a private view: what it, or a device, writes stays out of the memfd, and
  ///   ``rollBack(_:)`` forgets it. For a secondary, whose memfd holds the last checkpoint; what that costs is a copy of
  ///   the pages that were written, not of all RAM.
  public init(size: UInt64, rollsBack: Bool = false) throws(GuestMemoryError) {
    guard size >= 1 << 20, size <= Self.maximumSize, size % Self.pageSize == 0 else { throw .badSize(size) }
    let fd = unsafe lx_memfd("guest-ram", size)
    guard fd >= 0 else { throw .system(operation: "memfd_create", errno: -fd) }
    var error: CInt = 0
    guard
      let shared = unsafe lx_mmap(
        Int(size), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0, &error)
    else {
      lx_close(fd)
      throw .system(operation: "mmap", errno: error)
    }
    if rollsBack {
      guard
        let view = unsafe lx_mmap(
          Int(size), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0, &error)
      else {
        unsafe lx_munmap(shared, Int(size))
        lx_close(fd)
        throw .system(operation: "mmap", errno: error)
      }
      unsafe base = view
      unsafe checkpoint = shared
    } else {
      unsafe base = shared
      unsafe checkpoint = nil
    }
    self.size = size
    descriptor = fd
    let lowSize = min(size, Self.holeStart)
    low = Region(start: 0, size: lowSize, fileOffset: 0)
    high = Region(start: Self.highStart, size: size - lowSize, fileOffset: lowSize)
    dirty = DirtyPages(count: Int(size / Self.pageSize))
    rollBacks = Mutex(RollBacks(count: rollsBack ? Int(size / Self.pageSize) : 0))
  }

  deinit {
    unsafe lx_munmap(base, Int(size))
    if let checkpoint = unsafe checkpoint { unsafe lx_munmap(checkpoint, Int(size)) }
    lx_close(descriptor)
  }

  public var regions: [Region] { high.size == 0 ? [low] : [low, high] }
  public var pageCount: Int { Int(size / Self.pageSize) }

  /// File offset of guest range `address ..< address + count`, or nil when it is not inside one region.
  /// An empty range is inside when its address is, or is the end of a region.
  @inline(__always)
  public func fileOffset(of address: UInt64, count: UInt64) -> UInt64? {
    if address <= low.size, count <= low.size - address { return address }
    guard address >= high.start, high.size != 0 else { return nil }
    let offset = address - high.start
    guard offset <= high.size, count <= high.size - offset else { return nil }
    return high.fileOffset + offset
  }

  /// Guest-physical address of a file offset (the inverse of ``fileOffset(of:count:)``).
  public func address(ofFileOffset offset: UInt64) -> UInt64 {
    offset < low.size ? offset : high.start + (offset - low.size)
  }

  /// Host address of a guest range, for KVM memslots, I/O vectors and bulk copies inside this package.
  /// Whoever writes through it calls ``markDirty(address:count:)`` afterwards.
  @inline(__always)
  package func hostPointer(at address: UInt64, count: UInt64) -> UnsafeMutableRawPointer? {
    guard let offset = fileOffset(of: address, count: count) else { return nil }
    return unsafe base + Int(offset)
  }

  /// Host address of the whole mapping, ``size`` bytes, indexed by file offset.
  package var mapping: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: base, count: Int(size))
  }

  /// Marks the pages of a guest range as written by the VMM. The range must be inside RAM; others are ignored.
  @inline(__always)
  public func markDirty(address: UInt64, count: UInt64) {
    guard count > 0, let offset = fileOffset(of: address, count: count) else { return }
    dirty.insert(first: Int(offset / Self.pageSize), last: Int((offset + count - 1) / Self.pageSize))
  }

  // MARK: Plain values

  /// Copies a value out. Any alignment.
  @inline(__always)
  public func load<T: BitwiseCopyable>(_ type: T.Type = T.self, at address: UInt64) throws(GuestMemoryError) -> T {
    let count = UInt64(MemoryLayout<T>.size)
    guard let host = unsafe hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    return unsafe host.loadUnaligned(as: type)
  }

  /// Copies a value in and marks its pages. Any alignment.
  @inline(__always)
  public func store<T: BitwiseCopyable>(_ value: T, at address: UInt64) throws(GuestMemoryError) {
    let count = UInt64(MemoryLayout<T>.size)
    guard let host = unsafe hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    unsafe host.storeBytes(of: value, as: T.self)
    markDirty(address: address, count: count)
  }

  /// Copies `destination.count` bytes out of the guest.
  public func read(into destination: UnsafeMutableRawBufferPointer, at address: UInt64) throws(GuestMemoryError) {
    let count = UInt64(destination.count)
    guard let host = unsafe hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    guard let start = destination.baseAddress else { return }
    unsafe start.copyMemory(from: host, byteCount: destination.count)
  }

  /// Copies bytes into the guest and marks their pages.
  public func write(_ source: UnsafeRawBufferPointer, at address: UInt64) throws(GuestMemoryError) {
    let count = UInt64(source.count)
    guard let host = unsafe hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    guard let start = source.baseAddress else { return }
    unsafe host.copyMemory(from: start, byteCount: source.count)
    markDirty(address: address, count: count)
  }

  public func write(_ bytes: [UInt8], at address: UInt64) throws(GuestMemoryError) {
    var failure: GuestMemoryError?
    unsafe bytes.withUnsafeBytes { source in
      do throws(GuestMemoryError) { unsafe try write(source, at: address) } catch { failure = error }
    }
    if let failure { throw failure }
  }

  public func bytes(at address: UInt64, count: Int) throws(GuestMemoryError) -> [UInt8] {
    guard let host = unsafe hostPointer(at: address, count: UInt64(count)) else {
      throw .outsideRAM(address: address, count: UInt64(count))
    }
    return unsafe [UInt8](UnsafeRawBufferPointer(start: host, count: count))
  }

  // MARK: Shared-memory words (virtqueues)
  // Single loads and stores of the machine: the guest's vCPUs are the other side. Misaligned addresses are refused.

  @inline(__always)
  private func word<T>(_: T.Type, _ address: UInt64) throws(GuestMemoryError) -> UnsafePointer<Atomic<T>>
  where T: AtomicRepresentable {
    let count = UInt64(MemoryLayout<Atomic<T>>.size)
    guard address % count == 0, let host = unsafe hostPointer(at: address, count: count) else {
      throw .outsideRAM(address: address, count: count)
    }
    return unsafe UnsafePointer(host.assumingMemoryBound(to: Atomic<T>.self))
  }

  @inline(__always)
  public func loadAcquiring16(at address: UInt64) throws(GuestMemoryError) -> UInt16 {
    unsafe try word(UInt16.self, address).pointee.load(ordering: .acquiring)
  }

  @inline(__always)
  public func load64(at address: UInt64) throws(GuestMemoryError) -> UInt64 {
    unsafe try word(UInt64.self, address).pointee.load(ordering: .relaxed)
  }

  /// Stores a 16-bit word after everything stored before it, and marks its page.
  @inline(__always)
  public func storeReleasing16(_ value: UInt16, at address: UInt64) throws(GuestMemoryError) {
    unsafe try word(UInt16.self, address).pointee.store(value, ordering: .releasing)
    markDirty(address: address, count: 2)
  }
}
