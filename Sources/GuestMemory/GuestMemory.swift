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
  /// Huge pages are for RAM of whole ones.
  case notWholeHugePages(UInt64)
  /// A checkpoint is put back page by page, which huge pages can't.
  case hugePagesRollBack
  /// How many of the host's huge pages RAM needs, how many are free, and how many the host would need in all.
  case noHugePages(needed: UInt64, free: UInt64, total: UInt64)
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
    case .notWholeHugePages(let size):
      "guest RAM of \(size) bytes is no whole number of huge pages; give --memory as a multiple of 2M"
    case .hugePagesRollBack:
      "a secondary's RAM goes back to its checkpoint page by page, so it can't be on huge pages; leave out --hugepages"
    case .noHugePages(let needed, let free, let total):
      "guest RAM needs \(needed) huge pages of 2 MiB and \(free) are free; run: sysctl vm.nr_hugepages=\(total) (or leave out --hugepages)"
    }
  }
}

/// Guest RAM, and the one checked way to touch it.
///
/// RAM is one mapping, split by the 32-bit MMIO hole into at most two regions: anonymous memory on huge pages as far as the host has
/// some, or a private view of a memfd where it has to go back to a checkpoint. Every access names a guest-physical range, which must lie inside one region; every write by the VMM marks its pages in ``dirty``, after
/// the bytes are stored, so that a harvest between the two can only see the page again, never miss it.
///
/// Safe from any thread. The guest changes memory at any time: what decides something is read once, into a value.
@safe public final class GuestMemory: Sendable {
  public static let pageSize: UInt64 = 4096
  /// RAM stops here and goes on at ``highStart``; device windows live between.
  public static let holeStart: UInt64 = 0xc000_0000
  public static let highStart: UInt64 = 0x1_0000_0000
  public static let maximumSize: UInt64 = 1 << 40
  /// Bytes of a huge page. RAM begins at a multiple of it in the guest, in the mapping and in the process, so that one translation
  /// of the processor's can cover it.
  public static let hugePageSize: UInt64 = 2 << 20

  /// A range of guest-physical addresses backed by RAM.
  public struct Region: Sendable, Equatable {
    public let start: UInt64
    public let size: UInt64
    /// Offset of the region in the mapping, and in the memfd where there is one.
    public let fileOffset: UInt64
    public var end: UInt64 { start + size }
  }

  public let size: UInt64
  public let low: Region
  /// RAM above 4 GiB; size 0 when there is none.
  public let high: Region
  /// Pages written by the VMM since the last harvest, by page index in the file.
  public let dirty: DirtyPages
  private nonisolated(unsafe) let base: UnsafeMutableRawPointer
  /// The memfd itself, where ``base`` is a private view of it.
  nonisolated(unsafe) let checkpoint: UnsafeMutableRawPointer?
  let rollBacks: Mutex<RollBacks>
  /// /proc/self/pagemap, or negative.
  private let pageMap: CInt

  /// Makes `size` bytes of zeroed RAM. A core dump leaves it out.
  /// - Parameters:
  ///   - rollsBack: the guest gets a private view: what it, or a device, writes stays out of the memfd, and
  ///     ``rollBack(_:)`` forgets it. For a secondary, whose memfd holds the last checkpoint; what that costs is a copy of
  ///     the pages that were written, not of all RAM.
  ///   - hugePages: on the host's reserved huge pages (hugetlbfs), all of which are taken at once. Without, the kernel gives huge
  ///     pages as it has some, as RAM is touched.
  public init(size: UInt64, rollsBack: Bool = false, hugePages: Bool = false) throws(GuestMemoryError) {
    guard size >= 1 << 20, size <= Self.maximumSize, size % Self.pageSize == 0 else { throw .badSize(size) }
    if rollsBack {
      guard !hugePages else { throw .hugePagesRollBack }
      (unsafe base, unsafe checkpoint) = unsafe try Self.mapCheckpoint(Int(size))
      pageMap = -1
    } else {
      unsafe base = hugePages ? try Self.mapHugePages(size) : try Self.mapAnonymous(Int(size))
      unsafe checkpoint = nil
      pageMap = unsafe lx_open("/proc/self/pagemap", O_RDONLY, 0)
    }
    _ = unsafe lx_madvise(base, Int(size), MADV_DONTDUMP)
    if let checkpoint = unsafe checkpoint { _ = unsafe lx_madvise(checkpoint, Int(size), MADV_DONTDUMP) }
    self.size = size
    let lowSize = min(size, Self.holeStart)
    low = Region(start: 0, size: lowSize, fileOffset: 0)
    high = Region(start: Self.highStart, size: size - lowSize, fileOffset: lowSize)
    dirty = DirtyPages(count: Int(size / Self.pageSize))
    rollBacks = Mutex(RollBacks(count: rollsBack ? Int(size / Self.pageSize) : 0))
  }

  deinit {
    unsafe lx_munmap(base, Int(size))
    if let checkpoint = unsafe checkpoint { unsafe lx_munmap(checkpoint, Int(size)) }
    if pageMap >= 0 { lx_close(pageMap) }
  }

  // MARK: Mapping

  private static func map(_ size: Int, _ flags: CInt, _ file: CInt) throws(GuestMemoryError) -> UnsafeMutableRawPointer
  {
    var error: CInt = 0
    guard let mapping = unsafe lx_mmap(size, PROT_READ | PROT_WRITE, flags, file, 0, &error) else {
      throw .system(operation: "mmap", errno: error)
    }
    return unsafe mapping
  }

  /// Anonymous memory that begins at a multiple of a huge page's size: what lies before and behind goes back.
  private static func mapAnonymous(_ size: Int) throws(GuestMemoryError) -> UnsafeMutableRawPointer {
    let huge = Int(hugePageSize)
    let mapping = unsafe try map(size + huge, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)
    let before = (huge - Int(bitPattern: mapping) % huge) % huge
    let base = unsafe mapping + before
    if before > 0 { unsafe lx_munmap(mapping, before) }
    unsafe lx_munmap(base + size, huge - before)
    // Not the first: a start writes a few pages there, and the kernel would zero all of it, which takes a third of a millisecond and
    // more. A kernel without transparent huge pages does without.
    if size > huge { _ = unsafe lx_madvise(base + huge, size - huge, MADV_HUGEPAGE) }
    return unsafe base
  }

  private static func mapHugePages(_ size: UInt64) throws(GuestMemoryError) -> UnsafeMutableRawPointer {
    guard size % hugePageSize == 0 else { throw .notWholeHugePages(size) }
    let twoMebibytes: CInt = 21 << 26  // MAP_HUGE_2MB
    do throws(GuestMemoryError) {
      return unsafe try map(Int(size), MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | twoMebibytes, -1)
    } catch {
      guard error == .system(operation: "mmap", errno: ENOMEM) else { throw error }
      let all = hugePages("free_hugepages")
      let free = all - min(all, hugePages("resv_hugepages"))
      let needed = size / hugePageSize
      throw .noHugePages(needed: needed, free: free, total: hugePages("nr_hugepages") + needed - min(needed, free))
    }
  }

  /// A count of this host's reserved huge pages of 2 MiB (Documentation/admin-guide/mm/hugetlbpage.rst); 0 where it has none.
  public static func hugePages(_ count: String) -> UInt64 {
    UInt64(setting("hugepages/hugepages-2048kB/\(count)")) ?? 0
  }

  /// Whether the kernel gives huge pages to whom asks for them, as it has some (Documentation/admin-guide/mm/transhuge.rst).
  public static var givesHugePages: Bool {
    let modes = setting("transparent_hugepage/enabled")
    return modes.contains("[always]") || modes.contains("[madvise]")
  }

  /// A line of the kernel's memory settings; empty where there is none.
  private static func setting(_ name: String) -> String {
    let file = unsafe lx_open("/sys/kernel/mm/\(name)", O_RDONLY, 0)
    guard file >= 0 else { return "" }
    defer { lx_close(file) }
    var text = [UInt8](repeating: 0, count: 64)
    let read = unsafe text.withUnsafeMutableBytes { unsafe lx_read(file, $0.baseAddress, $0.count) }
    return String(decoding: text.prefix(max(0, read - 1)), as: UTF8.self)
  }

  /// The guest's view of a memfd, and the memfd.
  private static func mapCheckpoint(
    _ size: Int
  ) throws(GuestMemoryError) -> (view: UnsafeMutableRawPointer, checkpoint: UnsafeMutableRawPointer) {
    let file = unsafe lx_memfd("guest-ram", UInt64(size))
    guard file >= 0 else { throw .system(operation: "memfd_create", errno: -file) }
    // The mappings keep it.
    defer { lx_close(file) }
    let checkpoint = unsafe try map(size, MAP_SHARED | MAP_NORESERVE, file)
    do throws(GuestMemoryError) { return unsafe (try map(size, MAP_PRIVATE | MAP_NORESERVE, file), checkpoint) } catch {
      unsafe lx_munmap(checkpoint, size)
      throw error
    }
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

  /// What a state is loaded into before the machine runs, ``size`` bytes: the memfd where there is one, else RAM.
  package var contents: UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(start: checkpoint ?? base, count: Int(size))
  }

  /// The next pages from `page` on that may be other than zero; nil when there are none. What was never touched is skipped without
  /// touching it. The machine stands still.
  package func touchedPages(from page: Int) -> Range<Int>? {
    let touched: UInt64 = 1 << 63 | 1 << 62  // in RAM, in swap (Documentation/admin-guide/mm/pagemap.rst)
    var entries = [UInt64](repeating: touched, count: 512)
    var next = page
    while next < pageCount {
      let count = min(entries.count, pageCount - next)
      // What can't be read may be anything.
      guard pageMap >= 0, read(&entries, count, from: next) else { return next..<pageCount }
      guard let first = entries[..<count].firstIndex(where: { $0 & touched != 0 }) else {
        next += count
        continue
      }
      let end = entries[first..<count].firstIndex { $0 & touched == 0 } ?? count
      return next + first..<next + end
    }
    return nil
  }

  private func read(_ entries: inout [UInt64], _ count: Int, from page: Int) -> Bool {
    let first = unsafe (Int(bitPattern: base) / Int(Self.pageSize) + page) * 8
    return unsafe entries.withUnsafeMutableBytes { unsafe lx_pread(pageMap, $0.baseAddress, count * 8, Int64(first)) }
      == count * 8
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
