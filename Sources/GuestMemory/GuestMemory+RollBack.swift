internal import CLinux
internal import Glibc
internal import Synchronization

/// RAM of a secondary: the memfd holds a checkpoint, and the guest writes into a private view of it.
extension GuestMemory {
  public var rollsBack: Bool { unsafe checkpoint != nil }

  /// Puts a page of a checkpoint into the memfd. The guest's view follows at once where it has not written the page, and
  /// at ``rollBack(_:)`` where it has. The machine stands still, or has not written the page.
  /// - Parameter page: index in the memfd; out of range, it is refused with false.
  public func setCheckpointPage(_ page: Int, _ contents: UnsafeRawBufferPointer) -> Bool {
    guard let checkpoint = unsafe checkpoint, page >= 0, page < pageCount, contents.count == Int(Self.pageSize),
      let source = contents.baseAddress
    else { return false }
    unsafe memcpy(checkpoint + page * Int(Self.pageSize), source, contents.count)
    return true
  }

  /// A page of the checkpoint, to apply a delta to. Out of range, nil.
  public func checkpointPage(_ page: Int) -> UnsafeMutableRawBufferPointer? {
    guard let checkpoint = unsafe checkpoint, page >= 0, page < pageCount else { return nil }
    return unsafe UnsafeMutableRawBufferPointer(
      start: checkpoint + page * Int(Self.pageSize), count: Int(Self.pageSize))
  }

  /// Whether the checkpoint holds these bytes at a guest-physical address.
  public func isCheckpointed(_ bytes: UnsafeRawBufferPointer, at address: UInt64) -> Bool {
    guard let checkpoint = unsafe checkpoint, let offset = fileOffset(of: address, count: UInt64(bytes.count)) else {
      return false
    }
    guard let start = bytes.baseAddress else { return true }
    return unsafe memcmp(checkpoint + Int(offset), start, bytes.count) == 0
  }

  /// Forgets what the guest and its devices wrote to these pages: they read as the checkpoint again. The machine stands still, and
  /// its vCPUs are to be restored: page tables may be among the pages, whose translations processors keep until then. KVM keeps
  /// those it shadows for longer (``Machine/refreshTranslations(harvestingInto:)``).
  ///
  /// A page that the guest has written is one of its own, and is given back. One that was rolled back the last time too will be
  /// written again soon, which would take two faults and a copy: it is only written over.
  /// - Returns: 0 or an errno.
  public func rollBack(_ pages: PageSet) -> CInt {
    guard let checkpoint = unsafe checkpoint, let base = unsafe mapping.baseAddress, pages.count == pageCount else {
      return EINVAL
    }
    let size = Int(Self.pageSize)
    return rollBacks.withLock { rollBacks in
      var failure: CInt = 0
      var run = 0..<0
      let giveBack: (Range<Int>) -> Void = { run in
        guard !run.isEmpty else { return }
        let result = unsafe lx_madvise(base + run.lowerBound * size, run.count * size, MADV_DONTNEED)
        if result < 0 { failure = -result }
      }
      for index in pages.words.indices {
        let keeps = pages.words[index] & rollBacks.last.words[index]
        var word = pages.words[index] | rollBacks.kept.words[index]
        while word != 0 {
          let page = index << 6 + word.trailingZeroBitCount
          if keeps >> UInt64(page & 63) & 1 == 1 {
            let (view, truth) = unsafe (base + page * size, checkpoint + page * size)
            // To write what it reads anyway would make it a page of its own.
            if unsafe memcmp(view, truth, size) != 0 { unsafe memcpy(view, truth, size) }
          } else if page == run.upperBound {
            run = run.lowerBound..<page + 1
          } else {
            giveBack(run)
            run = page..<page + 1
          }
          word &= word - 1
        }
        rollBacks.kept.words[index] = keeps
        rollBacks.last.words[index] = pages.words[index]
      }
      giveBack(run)
      return failure
    }
  }
}

/// What a private view of RAM has been rolled back, for the next time.
struct RollBacks {
  /// The pages of the last time, and those of them that stayed the view's own.
  var last: PageSet
  var kept: PageSet

  init(count: Int) {
    last = PageSet(count: count)
    kept = PageSet(count: count)
  }
}
