internal import CLinux
public import StateCodec

/// Pages of a checkpoint in one byte string: for each its number (8 bytes) and a form (1 byte).
///
/// - 0: all zeros.
/// - 1: 4096 bytes as they are.
/// - 2: what has changed since the page was sent last: a length (2 bytes), then changes: words that are the same (2 bytes),
///   words that follow (2 bytes), those words. A word has 8 bytes.
public enum PageRun {
  public static let pageSize = 4096
  /// Pages in one run at the most.
  public static let limit = 1024
  private static let zero: UInt8 = 0
  private static let raw: UInt8 = 1
  private static let delta: UInt8 = 2
  private static let wordSize = 8
  /// A longer one is not worth applying.
  private static let longestDelta = 3072

  /// What a run says of a page.
  @unsafe public enum Contents {
    case whole(UnsafeRawBufferPointer)
    /// To be applied to what the page was: ``PageRun/apply(_:to:)``.
    case changes(UnsafeRawBufferPointer)
  }

  /// - Parameter base: what the page was when it was sent last; nil to send it whole.
  public static func append(
    _ page: UInt64, _ contents: UnsafeRawBufferPointer, base: UnsafeRawBufferPointer? = nil, to run: inout [UInt8]
  ) {
    for index in 0..<8 as Range<UInt64> { run.append(UInt8(truncatingIfNeeded: page >> (8 * index))) }
    guard let start = contents.baseAddress, unsafe lx_is_zero(start, contents.count) == 0 else {
      run.append(zero)
      return
    }
    if let base = unsafe base, unsafe appendChanges(contents, base, to: &run) { return }
    run.append(raw)
    unsafe run.append(contentsOf: contents)
  }

  /// False when there is too much of it; `run` is as it was then.
  private static func appendChanges(
    _ new: UnsafeRawBufferPointer, _ old: UnsafeRawBufferPointer, to run: inout [UInt8]
  ) -> Bool {
    let start = run.count
    run.append(delta)
    append16(0, to: &run)
    func differ(_ word: Int) -> Bool {
      unsafe new.loadUnaligned(fromByteOffset: word * wordSize, as: UInt64.self)
        != old.loadUnaligned(fromByteOffset: word * wordSize, as: UInt64.self)
    }
    let words = pageSize / wordSize
    var word = 0
    while true {
      let same = word
      while word < words, !differ(word) { word += 1 }
      guard word < words else { break }
      let first = word
      while word < words, differ(word) { word += 1 }
      append16(first - same, to: &run)
      append16(word - first, to: &run)
      unsafe run.append(contentsOf: new[first * wordSize..<word * wordSize])
      guard run.count - start <= longestDelta else {
        run.removeLast(run.count - start)
        return false
      }
    }
    let length = run.count - start - 3
    run[start + 1] = UInt8(truncatingIfNeeded: length)
    run[start + 2] = UInt8(truncatingIfNeeded: length >> 8)
    return true
  }

  private static func append16(_ value: Int, to run: inout [UInt8]) {
    run.append(UInt8(truncatingIfNeeded: value))
    run.append(UInt8(truncatingIfNeeded: value >> 8))
  }

  /// Brings a page that holds what it was up to what it is.
  /// - Parameter changes: from ``decode(_:pageCount:_:)``, which has checked them.
  public static func apply(_ changes: UnsafeRawBufferPointer, to page: UnsafeMutableRawBufferPointer) {
    var at = 0
    var word = 0
    while at < changes.count {
      word += unsafe Int(changes.loadUnaligned(fromByteOffset: at, as: UInt16.self))
      let count = unsafe Int(changes.loadUnaligned(fromByteOffset: at + 2, as: UInt16.self))
      at += 4
      unsafe UnsafeMutableRawBufferPointer(rebasing: page[word * wordSize..<(word + count) * wordSize])
        .copyMemory(from: UnsafeRawBufferPointer(rebasing: changes[at..<at + count * wordSize]))
      at += count * wordSize
      word += count
    }
  }

  private static func areValid(_ changes: ArraySlice<UInt8>) -> Bool {
    var at = changes.startIndex
    var word = 0
    while at < changes.endIndex {
      guard changes.endIndex - at >= 4 else { return false }
      word += Int(changes[at]) | Int(changes[at + 1]) << 8
      let count = Int(changes[at + 2]) | Int(changes[at + 3]) << 8
      word += count
      at += 4 + count * wordSize
      guard count > 0, word <= pageSize / wordSize, at <= changes.endIndex else { return false }
    }
    return true
  }

  /// Calls `body` with each page and what is said of it, which lies in `run` or is zeros. Nothing is called when the run is
  /// malformed or names a page of `pageCount` or more.
  public static func decode(
    _ run: [UInt8], pageCount: Int, _ body: (_ page: Int, _ contents: Contents) throws(StateError) -> Void
  ) throws(StateError) {
    var places: [(page: Int, form: UInt8, bytes: Range<Int>)] = []
    var at = 0
    while at < run.count {
      guard run.count - at >= 9, places.count < limit else { throw .invalid("a run of pages that ends early") }
      let number = (0..<8).reduce(UInt64(0)) { $0 | UInt64(run[at + $1]) << (8 * UInt64($1)) }
      guard number < UInt64(pageCount) else { throw .invalid("page \(number) outside guest RAM") }
      let form = run[at + 8]
      at += 9
      var size = 0
      switch form {
      case zero: break
      case raw: size = pageSize
      case delta:
        guard run.count - at >= 2 else { throw .invalid("a run of pages that ends early") }
        size = Int(run[at]) | Int(run[at + 1]) << 8
        at += 2
      default: throw .invalid("a page of form \(form)")
      }
      guard run.count - at >= size else { throw .invalid("a run of pages that ends early") }
      guard form != delta || areValid(run[at..<at + size]) else { throw .invalid("changes of page \(number)") }
      places.append((Int(number), form, at..<at + size))
      at += size
    }
    let zeros = [UInt8](repeating: 0, count: pageSize)
    var failure: StateError?
    unsafe run.withUnsafeBytes { bytes in
      unsafe zeros.withUnsafeBytes { nothing in
        for place in places where failure == nil {
          let said = unsafe UnsafeRawBufferPointer(rebasing: bytes[place.bytes])
          do throws(StateError) {
            try unsafe body(
              place.page, place.form == delta ? .changes(said) : .whole(place.form == zero ? nothing : said))
          } catch { failure = error }
        }
      }
    }
    if let failure { throw failure }
  }
}
