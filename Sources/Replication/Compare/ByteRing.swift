import Glibc

/// Bytes of a stream by their position in it: a window `low ..< low + capacity` over a power-of-two buffer.
///
/// Which of the positions hold something is for the owner to know. Positions are in bytes and only grow.
struct ByteRing: Sendable {
  private(set) var low: Int64 = 0
  private var bytes: [UInt8] = []

  var capacity: Int { bytes.count }

  /// How large the buffer must be for `end` to fit when all from `floor` on must stay. A power of two.
  static func size(for span: Int64, from current: Int) -> Int {
    var size = max(current, 2048)
    while size < span { size *= 2 }
    return size
  }

  /// Forgets what is below `position`, and everything if it is above all there is.
  mutating func moveLow(to position: Int64) { low = max(low, position) }

  /// An empty window that begins at `position`; the memory stays.
  mutating func restart(at position: Int64) { low = position }

  mutating func release() { bytes = [] }

  /// - Parameter size: a power of two, larger than the capacity.
  mutating func grow(to size: Int, keepingUpTo top: Int64) {
    var larger = [UInt8](repeating: 0, count: size)
    var at = low
    while at < top && capacity > 0 {
      let from = Int(at) & (capacity - 1)
      let to = Int(at) & (size - 1)
      let count = min(Int(top - at), capacity - from, size - to)
      larger.replaceSubrange(to..<to + count, with: bytes[from..<from + count])
      at += Int64(count)
    }
    bytes = larger
  }

  /// - Precondition: `position ..< position + source.count` lies in the window.
  mutating func store(_ source: Span<UInt8>, at position: Int64) {
    guard source.count > 0 else { return }
    precondition(position >= low && position - low <= capacity - source.count)
    let from = Int(position) & (bytes.count - 1)
    let first = min(source.count, bytes.count - from)
    unsafe bytes.withUnsafeMutableBytes { ring in
      unsafe source.withUnsafeBytes { source in
        // Both ranges were checked above; the second piece begins at the start of the buffer.
        unsafe memcpy(ring.baseAddress! + from, source.baseAddress!, first)
        unsafe memcpy(ring.baseAddress!, source.baseAddress! + first, source.count - first)
      }
    }
  }

  mutating func storeZero(at position: Int64) {
    precondition(position >= low && position - low < capacity)
    bytes[Int(position) & (bytes.count - 1)] = 0
  }

  func holds(_ range: Range<Int64>) -> Bool {
    range.lowerBound >= low && range.upperBound - low <= Int64(capacity)
  }

  /// What `body` makes of the bytes at `range`, which may lie in two pieces.
  ///
  /// - Precondition: `range` lies in the window and is not empty.
  func withBytes<R>(_ range: Range<Int64>, _ body: (UnsafeRawBufferPointer, UnsafeRawBufferPointer) -> R) -> R {
    precondition(holds(range))
    let from = Int(range.lowerBound) & (bytes.count - 1)
    let first = min(range.count, bytes.count - from)
    return unsafe bytes.withUnsafeBytes { ring in
      unsafe body(
        UnsafeRawBufferPointer(rebasing: ring[from..<from + first]),
        UnsafeRawBufferPointer(rebasing: ring[..<(range.count - first)]))
    }
  }

  /// The index of the first byte of `source` that differs from what is stored at `position`, nil if none does.
  ///
  /// - Precondition: `position ..< position + source.count` lies in the window.
  func firstDifference(_ source: Span<UInt8>, at position: Int64) -> Int? {
    guard source.count > 0 else { return nil }
    precondition(position >= low && position - low <= capacity - source.count)
    let from = Int(position) & (bytes.count - 1)
    let first = min(source.count, bytes.count - from)
    let isEqual = unsafe bytes.withUnsafeBytes { ring in
      unsafe source.withUnsafeBytes { source in
        unsafe memcmp(ring.baseAddress! + from, source.baseAddress!, first) == 0
          && memcmp(ring.baseAddress!, source.baseAddress! + first, source.count - first) == 0
      }
    }
    if isEqual { return nil }
    for index in 0..<source.count where bytes[Int(position + Int64(index)) & (bytes.count - 1)] != source[index] {
      return index
    }
    return nil
  }
}
