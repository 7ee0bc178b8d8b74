internal import CLinux
internal import Glibc
internal import GuestMemory
internal import MiniVMM
internal import Synchronization

/// What is known of bytes that a reply is made of.
enum Standing: Equatable {
  /// All checkpoints from this one on hold them, up to the newest.
  case since(UInt64)
  /// The newest checkpoint holds others: so the secondary's guest, which goes on from there, finds as well.
  case changed
  case unknown

  /// With more bytes of the reply.
  mutating func join(_ other: Standing) {
    switch (self, other) {
    case (.changed, _), (_, .changed): self = .changed
    case (.unknown, _), (_, .unknown): self = .unknown
    case (.since(let a), .since(let b)): self = .since(max(a, b))
    }
  }
}

/// What checkpoints hold of the pages that replies are made of, so that it can be told whether a reply says what the secondary
/// has as well.
///
/// A range is synchronised when it holds, byte for byte, what the newest checkpoints hold: nobody has to know who writes to guest
/// memory, nor ask KVM. A page that is asked for is remembered from the next checkpoint on. Pages share places, as in
/// ``SentPages``. From any thread.
@safe final class SourcePages: Sendable {
  private static let pageSize = 4096
  /// A page that isn't known yet, or whose contents are about to be.
  private static let never = UInt64.max

  private struct Entry {
    var page = -1
    /// The first checkpoint that holds the present copy; all later ones do too.
    var since = SourcePages.never
    /// The first that held the copy before, all up to `since`; never: there is none.
    var before = SourcePages.never
    /// Which half of the place is the present copy.
    var half = 0
    /// Copied from memory in this epoch, and not known to have been so from its beginning to its end.
    var isFresh = false
  }

  private struct State: ~Copyable {
    var entries: [Entry]
    /// Pages copied in this epoch for the first time.
    var fresh: [Int] = []
  }

  private let state: Mutex<State>
  private let places: Int
  private let memory: GuestMemory
  private nonisolated(unsafe) let area: UnsafeMutableRawBufferPointer

  /// - Parameter bytes: of guest memory to remember at the most; twice as many are kept.
  init(_ memory: GuestMemory, bytes: Int = 128 << 20) {
    self.memory = memory
    let wanted = min(bytes / Self.pageSize, memory.pageCount)
    var error: CInt = 0
    let base = unsafe lx_mmap(
      2 * wanted * Self.pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0, &error)
    places = unsafe base == nil ? 0 : wanted
    unsafe area = UnsafeMutableRawBufferPointer(start: base, count: 2 * places * Self.pageSize)
    state = Mutex(State(entries: [Entry](repeating: Entry(), count: places)))
  }

  deinit { if let base = unsafe area.baseAddress { unsafe lx_munmap(base, area.count) } }

  /// Another secondary: what the one before had says nothing of it.
  func removeAll() {
    state.withLock { state in
      for index in state.entries.indices { state.entries[index] = Entry() }
      state.fresh.removeAll()
    }
  }

  /// Whether checkpoints hold these bytes at `address`.
  func standing(_ bytes: UnsafeRawBufferPointer, at address: UInt64) -> Standing {
    guard places > 0, let first = memory.fileOffset(of: address, count: UInt64(bytes.count)) else { return .unknown }
    var result = Standing.since(0)
    var done = 0
    while done < bytes.count {
      let offset = Int(first) + done
      let page = offset / Self.pageSize
      let within = offset % Self.pageSize
      let count = min(Self.pageSize - within, bytes.count - done)
      let piece = unsafe UnsafeRawBufferPointer(rebasing: bytes[done..<done + count])
      result.join(unsafe standing(piece, page, within))
      done += count
    }
    return result
  }

  private func standing(_ bytes: UnsafeRawBufferPointer, _ page: Int, _ within: Int) -> Standing {
    let index = page % places
    return state.withLock { state in
      let entry = state.entries[index]
      guard entry.page == page else {
        // The place is taken over; its contents count if nobody writes to the page in all of this epoch.
        state.entries[index] = Entry(page: page, isFresh: true)
        state.fresh.append(page)
        let contents = unsafe memory.mapping.baseAddress! + page * Self.pageSize
        unsafe copy(index, 0).copyMemory(from: UnsafeRawBufferPointer(start: contents, count: Self.pageSize))
        return .unknown
      }
      guard entry.since != Self.never else { return .unknown }
      guard unsafe equal(bytes, index, entry.half, within) else { return .changed }
      if entry.before != Self.never, unsafe equal(bytes, index, 1 - entry.half, within) { return .since(entry.before) }
      return .since(entry.since)
    }
  }

  private func equal(_ bytes: UnsafeRawBufferPointer, _ index: Int, _ half: Int, _ within: Int) -> Bool {
    unsafe memcmp(copy(index, half).baseAddress! + within, bytes.baseAddress!, bytes.count) == 0
  }

  /// Checkpoint `epoch` has been cut, and these pages have changed. The machine stands still.
  func cut(_ epoch: UInt64, changed pages: [Int]) {
    guard places > 0 else { return }
    state.withLock { state in
      for page in state.fresh where state.entries[page % places].page == page {
        state.entries[page % places].since = epoch
        state.entries[page % places].isFresh = false
      }
      state.fresh.removeAll(keepingCapacity: true)
      for page in pages where state.entries[page % places].page == page {
        let entry = state.entries[page % places]
        // Until ``update(_:epoch:)`` has seen the page, nothing is known of it. What was fresh has no copy before.
        state.entries[page % places].before = entry.since == epoch ? Self.never : entry.since
        state.entries[page % places].since = Self.never
      }
    }
  }

  /// What the changed pages hold in checkpoint `epoch`. The machine runs again.
  func update(_ stage: PageStage, epoch: UInt64) {
    guard places > 0 else { return }
    for (number, page) in stage.pages.enumerated() {
      let index = page % places
      state.withLock { state in
        let entry = state.entries[index]
        guard entry.page == page, entry.since == Self.never, !entry.isFresh else { return }
        let half = 1 - entry.half
        unsafe copy(index, half).copyMemory(from: UnsafeRawBufferPointer(stage.contents(number)))
        state.entries[index].half = half
        state.entries[index].since = epoch
      }
    }
  }

  private func copy(_ index: Int, _ half: Int) -> UnsafeMutableRawBufferPointer {
    let start = (2 * index + half) * Self.pageSize
    return unsafe UnsafeMutableRawBufferPointer(rebasing: area[start..<start + Self.pageSize])
  }
}
