/// Walks the options of a TCP header. Ends at the first that does not fit; never reads outside the header.
struct TCPOptions {
  static let sack: UInt8 = 5
  static let timestamps: UInt8 = 8

  private var at: Int
  private let end: Int

  /// - Parameters: offsets in bytes from the start of the frame.
  init(header transport: Int, end: Int) {
    at = transport + 20
    self.end = end
  }

  /// The kind of the next option but padding, and the offset and length in bytes of what follows its kind and length.
  mutating func next(_ frame: Span<UInt8>) -> (kind: UInt8, body: Range<Int>)? {
    while at < end {
      let kind = frame[at]
      if kind == 0 { return nil }
      if kind == 1 {
        at += 1
        continue
      }
      guard end - at >= 2 else { return nil }
      let length = Int(frame[at + 1])
      guard length >= 2, length <= end - at else { return nil }
      let body = at + 2..<at + length
      at += length
      return (kind, body)
    }
    return nil
  }
}

extension Frame {
  /// Whether a TCP frame says that its sender has bytes beyond what it acknowledges (RFC 2018).
  public func hasSACK(_ bytes: Span<UInt8>) -> Bool {
    var options = TCPOptions(header: transport, end: payload.lowerBound)
    while let option = options.next(bytes) { if option.kind == TCPOptions.sack { return true } }
    return false
  }
}
