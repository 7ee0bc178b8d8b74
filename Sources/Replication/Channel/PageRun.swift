internal import CLinux
public import StateCodec

/// Pages of a checkpoint in one byte string: for each its number (8 bytes) and a form (1 byte): all zeros, or 4096 bytes
/// as they are.
public enum PageRun {
  public static let pageSize = 4096
  /// Pages in one run at the most.
  public static let limit = 1024
  private static let zero: UInt8 = 0
  private static let raw: UInt8 = 1

  public static func append(_ page: UInt64, _ contents: UnsafeRawBufferPointer, to run: inout [UInt8]) {
    for index in 0..<8 as Range<UInt64> { run.append(UInt8(truncatingIfNeeded: page >> (8 * index))) }
    guard let base = contents.baseAddress, unsafe lx_is_zero(base, contents.count) == 0 else {
      run.append(zero)
      return
    }
    run.append(raw)
    unsafe run.append(contentsOf: contents)
  }

  /// Calls `body` with each page and its contents, which are zeros or lie in `run`. Nothing is called when the run is
  /// malformed or names a page of `pageCount` or more.
  public static func decode(
    _ run: [UInt8], pageCount: Int, _ body: (_ page: Int, _ contents: UnsafeRawBufferPointer) throws(StateError) -> Void
  ) throws(StateError) {
    var positions: [(page: Int, at: Int)] = []
    var at = 0
    while at < run.count {
      guard run.count - at >= 9, positions.count < limit else { throw .invalid("a run of pages that ends early") }
      let number = (0..<8).reduce(UInt64(0)) { $0 | UInt64(run[at + $1]) << (8 * UInt64($1)) }
      guard number < UInt64(pageCount) else { throw .invalid("page \(number) outside guest RAM") }
      let form = run[at + 8]
      at += 9
      switch form {
      case zero: positions.append((Int(number), -1))
      case raw:
        guard run.count - at >= pageSize else { throw .invalid("a run of pages that ends early") }
        positions.append((Int(number), at))
        at += pageSize
      default: throw .invalid("a page of form \(form)")
      }
    }
    let zeros = [UInt8](repeating: 0, count: pageSize)
    var failure: StateError?
    unsafe run.withUnsafeBytes { bytes in
      unsafe zeros.withUnsafeBytes { nothing in
        for (page, at) in positions where failure == nil {
          do throws(StateError) {
            try unsafe body(
              page, at < 0 ? nothing : UnsafeRawBufferPointer(rebasing: bytes[at..<at + pageSize]))
          } catch { failure = error }
        }
      }
    }
    if let failure { throw failure }
  }
}
