internal import CLinux
internal import Glibc
internal import MiniVMM

/// What the secondary was told last of the pages that change most, so that only what has changed since is told. Each page has
/// one place, which it shares with others. One thread.
@safe final class SentPages {
  private static let pageSize = 4096
  private var pages: [Int]
  private nonisolated(unsafe) let area: UnsafeMutableRawBufferPointer

  /// - Parameter bytes: the most that is kept; nothing is when there is no memory for it.
  init(bytes: Int = 64 << 20, pageCount: Int) {
    let count = min(bytes / Self.pageSize, pageCount)
    var error: CInt = 0
    let base = unsafe lx_mmap(
      count * Self.pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &error)
    unsafe area = UnsafeMutableRawBufferPointer(start: base, count: base == nil ? 0 : count * Self.pageSize)
    pages = [Int](repeating: -1, count: unsafe area.count / Self.pageSize)
  }

  deinit { if let base = unsafe area.baseAddress { unsafe lx_munmap(base, area.count) } }

  /// What was told last of a page; nil when that is not known any more.
  func last(_ page: Int) -> UnsafeRawBufferPointer? {
    guard !pages.isEmpty, pages[page % pages.count] == page else { return nil }
    return unsafe UnsafeRawBufferPointer(place(page))
  }

  func told(_ page: Int, _ contents: UnsafeRawBufferPointer) {
    guard !pages.isEmpty else { return }
    pages[page % pages.count] = page
    unsafe place(page).copyMemory(from: contents)
  }

  private func place(_ page: Int) -> UnsafeMutableRawBufferPointer {
    let start = page % pages.count * Self.pageSize
    return unsafe UnsafeMutableRawBufferPointer(rebasing: area[start..<start + Self.pageSize])
  }
}
