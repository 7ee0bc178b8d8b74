import LabC

/// The header of every stored item, at the start of its chunk; key and (unless it has pages of its own) value follow.
struct Item {
  /// Hash chain while linked; list of items waiting for the device afterwards.
  var next: UnsafeMutablePointer<Item>?
  /// Frames up to this one may still be sent from the item's memory.
  var stamp: UInt64
  /// Unique for each stored value; memcached's cas.
  var cas: UInt64
  /// Clock.now at which it ceases to exist; 0: never.
  var expiry: UInt64
  var valueLength: UInt32
  /// First page of a large value.
  var firstPage: UInt32
  var clientFlags: UInt32
  /// One for the table, one for whoever fills or sends it.
  var references: UInt32
  var hash: UInt32
  var keyLength: UInt8
  var state: ItemState
  /// It was sent without copying at least once.
  var wasSent: Bool

  static var headerSize: Int { 64 }
  /// From ``cas`` to ``clientFlags``: what of the header an answer depends on.
  static var answerStart: Int { 16 }
  static var answerSize: Int { 28 }
}

enum ItemState: UInt8 { case free, unlinked, linked }

/// Where a page of the store belongs.
struct Page {
  enum Use: UInt8 { case free, chunks, value }

  /// Next page of the same value, of the same class with free chunks, or of the free list.
  var next: UInt32
  /// Previous page in the list of pages with free chunks.
  var previous: UInt32
  /// The item whose value this is.
  var owner: UnsafeMutablePointer<Item>?
  /// First free chunk, as its number + 1.
  var firstFree: UInt16
  var live: UInt16
  var use: Use
  var sizeClass: UInt8
  /// Touched since the eviction hand last came by.
  var recent: Bool

  static var none: UInt32 { .max }
  static var size: Int { 4096 }
}

/// All free RAM as 4 KiB pages: chunks of a few sizes for small items, whole pages for large values. When there is no
/// room, a clock hand goes round the pages and evicts what was not touched since its last visit.
enum Pages {
  static let largestChunk = 2048
  private static let classCount = 14
  private static let chunkSizes: InlineArray<14, UInt16> = [
    96, 128, 160, 192, 256, 320, 400, 448, 576, 672, 816, 1024, 1360, 2048,
  ]

  nonisolated(unsafe) private static var memory = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var pages = UnsafeMutablePointer<Page>.unset
  nonisolated(unsafe) private(set) static var count = 0
  nonisolated(unsafe) private static var neverUsed = 0
  nonisolated(unsafe) private static var freeList = Page.none
  nonisolated(unsafe) private static var withFreeChunks: InlineArray<14, UInt32> = .init(repeating: UInt32.max)
  nonisolated(unsafe) private static var hand = 0
  nonisolated(unsafe) static var evictions: UInt64 = 0

  static func setUp(bytes: UInt64) {
    count = Int(bytes) / (Page.size + MemoryLayout<Page>.stride)
    pages = Arena.take(MemoryLayout<Page>.stride * count).bindMemory(to: Page.self, capacity: count)
    count -= 1
    memory = Arena.take(count * Page.size, alignment: 4096)
  }

  // MARK: Places

  static func start(of page: UInt32) -> UnsafeMutableRawPointer { memory + Int(page) * Page.size }

  static func next(of page: UInt32) -> UInt32 { pages[Int(page)].next }

  private static func page(of item: UnsafeMutablePointer<Item>) -> Int {
    (UnsafeRawPointer(item) - UnsafeRawPointer(memory)) / Page.size
  }

  static func touch(_ item: UnsafeMutablePointer<Item>) {
    let own = page(of: item)
    if !pages[own].recent { pages[own].recent = true }
    if item.pointee.firstPage != Page.none { pages[Int(item.pointee.firstPage)].recent = true }
  }

  // MARK: Allocation

  /// An item with room for key and value, one reference, not in the table; nil if even eviction found no room.
  static func allocate(keyLength: Int, valueLength: Int) -> UnsafeMutablePointer<Item>? {
    let small = Item.headerSize + keyLength + valueLength <= largestChunk
    let size = Item.headerSize + keyLength + (small ? valueLength : 0)
    guard let item = allocateChunk(size) else { return nil }
    item.initialize(
      to: Item(
        next: nil, stamp: 0, cas: 0, expiry: 0, valueLength: UInt32(valueLength), firstPage: Page.none,
        clientFlags: 0, references: 1, hash: 0, keyLength: UInt8(keyLength), state: .unlinked, wasSent: false))
    if small { return item }
    var last = Page.none
    var left = valueLength
    while left > 0 {
      guard let page = allocatePage(.value) else {
        free(item)
        return nil
      }
      pages[page].owner = item
      pages[page].next = Page.none
      if last == Page.none { item.pointee.firstPage = UInt32(page) } else { pages[Int(last)].next = UInt32(page) }
      last = UInt32(page)
      left -= min(left, Page.size)
    }
    return item
  }

  static func free(_ item: UnsafeMutablePointer<Item>) {
    var page = item.pointee.firstPage
    while page != Page.none {
      let following = pages[Int(page)].next
      freePage(Int(page))
      page = following
    }
    freeChunk(item)
  }

  private static func allocateChunk(_ size: Int) -> UnsafeMutablePointer<Item>? {
    var sizeClass = 0
    while Int(chunkSizes[sizeClass]) < size {
      sizeClass += 1
      if sizeClass == classCount { return nil }
    }
    if withFreeChunks[sizeClass] == Page.none {
      // A turn of the hand may free a chunk of this class or a whole page.
      guard let page = takePage() ?? evictFor({ withFreeChunks[sizeClass] == Page.none ? takePage() : Int.max })
      else { return nil }
      if page != Int.max { divide(page, sizeClass) }
    }
    let page = Int(withFreeChunks[sizeClass])
    let number = Int(pages[page].firstFree) - 1
    let item = chunk(page, number)
    pages[page].firstFree = UInt16(truncatingIfNeeded: item.pointee.valueLength)
    pages[page].live += 1
    pages[page].recent = true
    if pages[page].firstFree == 0 { removeFromClass(page) }
    return item
  }

  private static func chunk(_ page: Int, _ number: Int) -> UnsafeMutablePointer<Item> {
    (memory + page * Page.size + number * Int(chunkSizes[Int(pages[page].sizeClass)]))
      .assumingMemoryBound(to: Item.self)
  }

  private static func chunkCount(_ page: Int) -> Int { Page.size / Int(chunkSizes[Int(pages[page].sizeClass)]) }

  private static func divide(_ page: Int, _ sizeClass: Int) {
    pages[page].use = .chunks
    pages[page].sizeClass = UInt8(sizeClass)
    pages[page].live = 0
    pages[page].owner = nil
    let total = chunkCount(page)
    for number in 0..<total {
      let free = chunk(page, number)
      free.pointee.state = .free
      free.pointee.valueLength = number + 1 < total ? UInt32(number + 2) : 0
    }
    pages[page].firstFree = 1
    addToClass(page)
  }

  private static func freeChunk(_ item: UnsafeMutablePointer<Item>) {
    let page = page(of: item)
    let offset = UnsafeRawPointer(item) - UnsafeRawPointer(start(of: UInt32(page)))
    let number = offset / Int(chunkSizes[Int(pages[page].sizeClass)])
    item.pointee.state = .free
    item.pointee.valueLength = UInt32(pages[page].firstFree)
    if pages[page].firstFree == 0 { addToClass(page) }
    pages[page].firstFree = UInt16(number + 1)
    pages[page].live -= 1
    if pages[page].live == 0 {
      removeFromClass(page)
      freePage(page)
    }
  }

  private static func addToClass(_ page: Int) {
    let sizeClass = Int(pages[page].sizeClass)
    let head = withFreeChunks[sizeClass]
    pages[page].next = head
    pages[page].previous = Page.none
    if head != Page.none { pages[Int(head)].previous = UInt32(page) }
    withFreeChunks[sizeClass] = UInt32(page)
  }

  private static func removeFromClass(_ page: Int) {
    let next = pages[page].next
    let previous = pages[page].previous
    if previous == Page.none {
      withFreeChunks[Int(pages[page].sizeClass)] = next
    } else {
      pages[Int(previous)].next = next
    }
    if next != Page.none { pages[Int(next)].previous = previous }
  }

  private static func takePage() -> Int? {
    if freeList != Page.none {
      let page = Int(freeList)
      freeList = pages[page].next
      pages[page].recent = true
      return page
    }
    guard neverUsed < count else { return nil }
    let page = neverUsed
    neverUsed += 1
    pages[page].recent = true
    return page
  }

  private static func allocatePage(_ use: Page.Use) -> Int? {
    guard let page = takePage() ?? evictFor({ takePage() }) else { return nil }
    pages[page].use = use
    return page
  }

  private static func freePage(_ page: Int) {
    pages[page].use = .free
    pages[page].owner = nil
    pages[page].next = freeList
    freeList = UInt32(page)
  }

  static var freePages: Int {
    var free = count - neverUsed
    var page = freeList
    while page != Page.none {
      free += 1
      page = pages[Int(page)].next
    }
    return free
  }

  // MARK: Eviction

  /// Moves the hand until `attempt` succeeds, at most twice round.
  private static func evictFor(_ attempt: () -> Int?) -> Int? {
    for _ in 0..<2 * count {
      let page = hand
      hand = hand + 1 == count ? 0 : hand + 1
      if evict(page), let found = attempt() { return found }
    }
    return nil
  }

  /// Gives the page a second chance or drops all in it that nobody uses.
  private static func evict(_ page: Int) -> Bool {
    guard page < neverUsed, pages[page].use != .free else { return false }
    if pages[page].use == .value {
      // The first page's mark stands for the whole value.
      guard let owner = pages[page].owner else { return false }
      let first = Int(owner.pointee.firstPage)
      if pages[first].recent {
        if page == first { pages[first].recent = false }
        return false
      }
      return drop(owner)
    }
    if pages[page].recent {
      pages[page].recent = false
      return false
    }
    var any = false
    for number in 0..<chunkCount(page) where pages[page].use == .chunks && drop(chunk(page, number)) {
      any = true
    }
    return any
  }

  private static func drop(_ item: UnsafeMutablePointer<Item>) -> Bool {
    guard item.pointee.state == .linked, item.pointee.references == 1 else { return false }
    evictions += 1
    Store.unlink(item)
    return true
  }
}
