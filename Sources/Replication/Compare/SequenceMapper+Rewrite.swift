extension SequenceMapper {
  static func rewriteOutgoing(
    _ bytes: inout MutableSpan<UInt8>, _ frame: Frame, _ connection: Connection, offset: UInt32, isPartial: Bool
  ) {
    var update = ChecksumUpdate()
    subtract(offset, at: frame.transport + 4, &bytes, frame, &update)
    if connection.timestampOffset != 0 {
      var options = TCPOptions(header: frame.transport, end: frame.payload.lowerBound)
      while let option = options.next(bytes.span) {
        guard option.kind == TCPOptions.timestamps, option.body.count == 8 else { continue }
        subtract(connection.timestampOffset, at: option.body.lowerBound, &bytes, frame, &update)
      }
    }
    finish(&bytes, frame, update, isPartial: isPartial)
  }

  static func rewriteIncoming(
    _ bytes: inout MutableSpan<UInt8>, _ frame: Frame, _ connection: Connection, offset: UInt32, isPartial: Bool
  ) {
    var update = ChecksumUpdate()
    subtract(0 &- offset, at: frame.transport + 8, &bytes, frame, &update)
    var options = TCPOptions(header: frame.transport, end: frame.payload.lowerBound)
    while let option = options.next(bytes.span) {
      switch option.kind {
      case TCPOptions.sack where option.body.count % 8 == 0:
        for edge in stride(from: option.body.lowerBound, to: option.body.upperBound, by: 4) {
          subtract(0 &- offset, at: edge, &bytes, frame, &update)
        }
      case TCPOptions.timestamps where option.body.count == 8:
        subtract(0 &- connection.timestampOffset, at: option.body.lowerBound + 4, &bytes, frame, &update)
      default: break
      }
    }
    finish(&bytes, frame, update, isPartial: isPartial)
  }

  /// Has an incoming TCP frame acknowledge `number` and no more.
  ///
  /// - Parameter isPartial: its checksum is the pseudo-header's only (VIRTIO_NET_HDR_F_NEEDS_CSUM).
  public static func acknowledge(
    _ number: UInt32, _ bytes: inout MutableSpan<UInt8>, _ frame: Frame, isPartial: Bool
  ) {
    var update = ChecksumUpdate()
    subtract(frame.acknowledgement &- number, at: frame.transport + 8, &bytes, frame, &update)
    finish(&bytes, frame, update, isPartial: isPartial)
  }

  private static func subtract(
    _ amount: UInt32, at offset: Int, _ bytes: inout MutableSpan<UInt8>, _ frame: Frame, _ update: inout ChecksumUpdate
  ) {
    let old = bytes.load32(offset)
    let new = old &- amount
    bytes.store32(new, at: offset)
    update.replace(old, with: new, at: offset - frame.transport)
  }

  private static func finish(
    _ bytes: inout MutableSpan<UInt8>, _ frame: Frame, _ update: ChecksumUpdate, isPartial: Bool
  ) {
    // A partial checksum covers the addresses and the length only, none of which has changed.
    if isPartial { return }
    let at = frame.transport + 16
    bytes.store16(update.applied(to: bytes.load16(at)), at: at)
  }

  static func timestamp(of frame: Frame, _ bytes: Span<UInt8>) -> UInt32? { timestamps(of: frame, bytes)?.value }

  static func timestamps(of frame: Frame, _ bytes: Span<UInt8>) -> (value: UInt32, echo: UInt32)? {
    var options = TCPOptions(header: frame.transport, end: frame.payload.lowerBound)
    while let option = options.next(bytes) {
      guard option.kind == TCPOptions.timestamps, option.body.count == 8 else { continue }
      return (bytes.load32(option.body.lowerBound), bytes.load32(option.body.lowerBound + 4))
    }
    return nil
  }
}
