import LabC

/// The key-value store: a hash table of items in ``Pages``. An item's bytes never change once it is linked: a new value
/// is a new item, and the old one lives on while it is being sent.
enum Store {
  static let largestValue = 1 << 20
  static let largestKey = 250

  nonisolated(unsafe) private static var buckets = UnsafeMutablePointer<UnsafeMutablePointer<Item>?>.unset
  nonisolated(unsafe) private static var mask: UInt32 = 0
  nonisolated(unsafe) private static var nextCAS: UInt64 = 1
  /// Items without references that the device may still be reading, oldest first.
  nonisolated(unsafe) private static var leavingHead: UnsafeMutablePointer<Item>?
  nonisolated(unsafe) private static var leavingTail: UnsafeMutablePointer<Item>?
  nonisolated(unsafe) private(set) static var count: UInt64 = 0
  nonisolated(unsafe) private(set) static var bytes: UInt64 = 0

  static func setUp() {
    let most = CommandLine.number("store_mib").map { $0 << 20 } ?? UInt64.max
    let size = min(most, Arena.free > 8 << 20 ? Arena.free - 4 << 20 : Arena.free / 2)
    var bucketCount: UInt64 = 1024
    while bucketCount * 512 < size { bucketCount *= 2 }
    buckets = Arena.takeZeroed(UnsafeMutablePointer<Item>?.self, count: Int(bucketCount))
    mask = UInt32(bucketCount - 1)
    Pages.setUp(bytes: size - bucketCount * 8)
  }

  // MARK: Items

  static func key(_ item: UnsafeMutablePointer<Item>) -> Bytes {
    let start = UnsafeRawPointer(item) + Item.headerSize
    return Bytes(start: start.assumingMemoryBound(to: UInt8.self), count: Int(item.pointee.keyLength))
  }

  /// FNV-1a, finished so that the low bits depend on all.
  private static func hash(_ key: Bytes) -> UInt32 {
    var h: UInt64 = 0xcbf2_9ce4_8422_2325
    for i in 0..<key.count { h = (h ^ UInt64(key[i])) &* 0x0000_0100_0000_01b3 }
    return UInt32(truncatingIfNeeded: h ^ (h >> 29))
  }

  static func find(_ key: Bytes) -> UnsafeMutablePointer<Item>? {
    let h = hash(key)
    var candidate = buckets[Int(h & mask)]
    while let item = candidate {
      if item.pointee.hash == h, Int(item.pointee.keyLength) == key.count,
        memcmp(self.key(item).start, key.start, key.count) == 0
      {
        if item.pointee.expiry != 0, Clock.now >= item.pointee.expiry {
          unlink(item)
          return nil
        }
        Pages.touch(item)
        return item
      }
      candidate = item.pointee.next
    }
    return nil
  }

  /// The bucket in which a key would be, if there is nothing in it.
  static func emptyBucket(_ key: Bytes) -> UnsafeRawPointer? {
    let bucket = buckets + Int(hash(key) & mask)
    return bucket.pointee == nil ? UnsafeRawPointer(bucket) : nil
  }

  /// A new item with this key and an empty value of this length, to be filled and then linked or released.
  static func make(_ key: Bytes, valueLength: Int) -> UnsafeMutablePointer<Item>? {
    guard let item = Pages.allocate(keyLength: key.count, valueLength: valueLength) else { return nil }
    _ = memcpy(UnsafeMutableRawPointer(item) + Item.headerSize, key.start, key.count)
    item.pointee.hash = hash(key)
    return item
  }

  /// Puts the item into the table, where it replaces one of the same key. The caller's reference becomes the table's.
  static func link(_ item: UnsafeMutablePointer<Item>) {
    if let old = find(key(item)) { unlink(old) }
    item.pointee.cas = nextCAS
    nextCAS += 1
    let bucket = Int(item.pointee.hash & mask)
    item.pointee.next = buckets[bucket]
    item.pointee.state = .linked
    buckets[bucket] = item
    count += 1
    bytes += UInt64(item.pointee.valueLength)
  }

  static func unlink(_ item: UnsafeMutablePointer<Item>) {
    guard item.pointee.state == .linked else { return }
    let bucket = Int(item.pointee.hash & mask)
    if buckets[bucket] == item {
      buckets[bucket] = item.pointee.next
    } else {
      var before = buckets[bucket]
      while let b = before, b.pointee.next != item { before = b.pointee.next }
      before?.pointee.next = item.pointee.next
    }
    item.pointee.state = .unlinked
    item.pointee.next = nil
    count -= 1
    bytes -= UInt64(item.pointee.valueLength)
    release(item)
  }

  static func removeAll() {
    for bucket in 0...Int(mask) {
      while let item = buckets[bucket] { unlink(item) }
    }
  }

  static func retain(_ item: UnsafeMutablePointer<Item>) { item.pointee.references += 1 }

  /// Gives a reference back. The last one frees the item, as soon as no frame in the device's hands points to it.
  static func release(_ item: UnsafeMutablePointer<Item>) {
    item.pointee.references -= 1
    guard item.pointee.references == 0 else { return }
    let stamp = Interface.transmitStamp
    if !item.pointee.wasSent || Interface.isTransmitted(stamp) {
      Pages.free(item)
      return
    }
    item.pointee.stamp = stamp
    item.pointee.next = nil
    if let tail = leavingTail { tail.pointee.next = item } else { leavingHead = item }
    leavingTail = item
  }

  static func collectLeaving() {
    while let item = leavingHead, Interface.isTransmitted(item.pointee.stamp) {
      leavingHead = item.pointee.next
      if leavingHead == nil { leavingTail = nil }
      Pages.free(item)
    }
  }
}

/// A position in an item's value, for filling it or sending it piece by piece.
struct ValueCursor {
  let item: UnsafeMutablePointer<Item>
  private(set) var offset = 0
  private var page: UInt32

  init(_ item: UnsafeMutablePointer<Item>) {
    self.item = item
    page = item.pointee.firstPage
  }

  var left: Int { Int(item.pointee.valueLength) - offset }

  /// The bytes from here on that lie together, at most 32 KiB.
  var piece: (start: UnsafeMutablePointer<UInt8>, count: Int) {
    if item.pointee.firstPage == Page.none {
      let value = UnsafeMutableRawPointer(item) + Item.headerSize + Int(item.pointee.keyLength)
      return ((value + offset).assumingMemoryBound(to: UInt8.self), left)
    }
    let within = offset % Page.size
    var count = Page.size - within
    var last = page
    while count < 28 * 1024, Pages.next(of: last) == last + 1 {
      last += 1
      count += Page.size
    }
    return ((Pages.start(of: page) + within).assumingMemoryBound(to: UInt8.self), min(count, left))
  }

  mutating func advance(_ n: Int) {
    if item.pointee.firstPage != Page.none {
      for _ in 0..<((offset + n) / Page.size - offset / Page.size) { page = Pages.next(of: page) }
    }
    offset += n
  }

  /// Copies bytes into the value.
  mutating func fill(_ source: UnsafeRawPointer, _ n: Int) {
    var done = 0
    while done < n, left > 0 {
      let piece = piece
      let part = min(piece.count, n - done)
      _ = memcpy(piece.start, source + done, part)
      advance(part)
      done += part
    }
  }
}
