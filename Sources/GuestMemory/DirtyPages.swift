internal import CLinux
internal import Glibc
internal import Synchronization

/// A set of guest pages that any thread adds to and one thread harvests: a bitmap of atomic words.
///
/// 1 bit a page: 32 KiB for a GiB of RAM. The words come from mmap and start at zero, so untouched ones cost nothing.
@safe public final class DirtyPages: Sendable {
  /// Number of pages covered.
  public let count: Int
  private nonisolated(unsafe) let words: UnsafeMutablePointer<Atomic<UInt64>>
  private let bytes: Int

  init(count: Int) {
    self.count = count
    bytes = (count + 63) / 64 * 8
    var error: CInt = 0
    guard
      let memory = unsafe lx_mmap(bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &error)
    else {
      // A few KiB at start-up, before any guest runs: nothing sensible is left to do.
      preconditionFailure("mmap of a \(bytes)-byte dirty bitmap failed: errno \(error)")
    }
    unsafe words = memory.assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  deinit { unsafe lx_munmap(UnsafeMutableRawPointer(words), bytes) }

  /// Adds pages `first ... last`; the caller has checked them against ``count``.
  @inline(__always)
  public func insert(first: Int, last: Int) {
    precondition(first >= 0 && last < count)
    var page = first
    while page <= last {
      let bit = page & 63
      let width = min(64 - bit, last - page + 1)
      let mask = (width == 64 ? ~0 : (UInt64(1) << UInt64(width)) - 1) << UInt64(bit)
      // A set bit needs no locked instruction: most writes hit ring pages that are already marked. Who harvests beside a writer, for the
      // first copy, may take the bit while the bytes are still in this processor's store buffer; they are out of it, within
      // microseconds, before all bits are taken and the first page is copied.
      if unsafe words[page >> 6].load(ordering: .relaxed) & mask != mask {
        _ = unsafe words[page >> 6].bitwiseOr(mask, ordering: .releasing)
      }
      page += width
    }
  }

  /// Moves the set into `pages` (union) and empties it.
  public func harvest(into pages: inout PageSet) {
    precondition(pages.count == count)
    for index in 0..<(count + 63) / 64 where unsafe words[index].load(ordering: .relaxed) != 0 {
      pages.words[index] |= unsafe words[index].exchange(0, ordering: .acquiringAndReleasing)
    }
  }
}

/// A plain set of page numbers (by page index in the memfd), 1 bit a page.
public struct PageSet: Equatable, Sendable {
  public let count: Int
  public var words: [UInt64]

  public init(count: Int) {
    self.count = count
    words = [UInt64](repeating: 0, count: (count + 63) / 64)
  }

  public func contains(_ page: Int) -> Bool { words[page >> 6] >> UInt64(page & 63) & 1 == 1 }
  public mutating func insert(_ page: Int) { words[page >> 6] |= 1 << UInt64(page & 63) }
  public mutating func insertAll() {
    for page in 0..<count { insert(page) }
  }
  /// Adds the pages of a bitmap whose first bit is page `64 * fromWord`.
  public mutating func formUnion(_ bitmap: Span<UInt64>, fromWord first: Int) {
    // One view of the array: the loop is a GiB's 4096 words long, and the guest stands still.
    var mine = words.mutableSpan
    for index in bitmap.indices { mine[first &+ index] |= bitmap[index] }
  }
  public mutating func removeAll() {
    var mine = words.mutableSpan
    mine.update(repeating: 0)
  }
  /// How many pages are in the set.
  public var population: Int { words.reduce(0) { $0 + $1.nonzeroBitCount } }

  /// Calls `body` with each page number, ascending.
  @inline(__always)
  public func forEach<E: Error>(_ body: (Int) throws(E) -> Void) throws(E) {
    for index in words.indices {
      var word = words[index]
      while word != 0 {
        try body(index << 6 + word.trailingZeroBitCount)
        word &= word - 1
      }
    }
  }
}
