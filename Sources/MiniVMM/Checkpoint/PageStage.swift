internal import CLinux
internal import Glibc
public import GuestMemory

/// Copies of guest pages, one after the other, and which pages they are: what a checkpoint leaves the machine with while
/// the guest goes on. Grows to the largest checkpoint and keeps its memory. Not thread-safe: it is handed from one to the
/// next.
@safe public final class PageStage: @unchecked Sendable {
  /// Page indices in the memfd, in the order of ``contents(_:)``.
  public private(set) var pages: [Int] = []
  private nonisolated(unsafe) var area: UnsafeMutableRawBufferPointer
  private static let pageSize = Int(GuestMemory.pageSize)

  public init() { unsafe area = UnsafeMutableRawBufferPointer(start: nil, count: 0) }

  deinit { if let base = unsafe area.baseAddress { unsafe lx_munmap(base, area.count) } }

  public func removeAll() { pages.removeAll(keepingCapacity: true) }

  /// Bytes of the `index`th copy.
  public func contents(_ index: Int) -> UnsafeMutableRawBufferPointer {
    unsafe UnsafeMutableRawBufferPointer(rebasing: area[index * Self.pageSize..<(index + 1) * Self.pageSize])
  }

  /// The copy of a page; nil when there is none. Pages were added in ascending order.
  public func find(_ page: Int) -> UnsafeRawBufferPointer? {
    var low = 0
    var high = pages.count
    while low < high {
      let middle = (low + high) / 2
      if pages[middle] < page { low = middle + 1 } else { high = middle }
    }
    guard low < pages.count, pages[low] == page else { return nil }
    return unsafe UnsafeRawBufferPointer(contents(low))
  }

  /// Copies pages out of guest RAM.
  public func add(_ set: PageSet, of memory: GuestMemory) throws(GuestMemoryError) {
    let count = set.population
    try reserve(pages.count + count)
    let mapping = unsafe memory.mapping
    set.forEach { page in
      unsafe memcpy(
        area.baseAddress! + pages.count * Self.pageSize, mapping.baseAddress! + page * Self.pageSize, Self.pageSize)
      pages.append(page)
    }
  }

  /// Room for one more copy of page `page`, for the caller to fill.
  public func add(_ page: Int) throws(GuestMemoryError) -> UnsafeMutableRawBufferPointer {
    try reserve(pages.count + 1)
    pages.append(page)
    return unsafe contents(pages.count - 1)
  }

  private func reserve(_ count: Int) throws(GuestMemoryError) {
    let needed = count * Self.pageSize
    guard unsafe needed > area.count else { return }
    let size = unsafe max(needed, area.count * 2, 4 << 20)
    var error: CInt = 0
    guard
      let base = unsafe lx_mmap(
        size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &error)
    else { throw .system(operation: "mmap of a checkpoint's pages", errno: error) }
    // One translation for 512 copies: they are made while the guest stands still. A kernel that has none left does without.
    _ = unsafe lx_madvise(base, size, MADV_HUGEPAGE)
    if let old = unsafe area.baseAddress {
      unsafe memcpy(base, old, pages.count * Self.pageSize)
      unsafe lx_munmap(old, area.count)
    }
    unsafe area = UnsafeMutableRawBufferPointer(start: base, count: size)
  }
}
