/// Frames in the name of one end of a TCP connection: such as end it.
public enum ResetFrame {
  /// Made of another frame of the same sender: the same headers without options and payload.
  /// - Parameters:
  ///   - bytes: a TCP frame with `header` bytes of a virtio-net header in front.
  ///   - sequence: what the other end expects next.
  public static func of(_ bytes: [UInt8], header: Int, sequence: UInt32) -> [UInt8] {
    bare(bytes, header: header, sequence: sequence, flags: .rst.union(.ack), window: 0)
  }

  /// Made of another frame of the same sender: empty, and old to the other end, which answers with what it has (RFC 9293, 3.8.4).
  /// - Parameter sequence: what the other end has at the least.
  public static func probe(_ bytes: [UInt8], header: Int, sequence: UInt32) -> [UInt8] {
    let frame = Frame(bytes.span.extracting(header...))
    let window = bytes.span.load16(header + frame.transport + 14)
    return bare(bytes, header: header, sequence: sequence &- 1, flags: .ack, window: window)
  }

  private static func bare(
    _ bytes: [UInt8], header: Int, sequence: UInt32, flags: Frame.Flags, window: UInt16
  ) -> [UInt8] {
    let frame = Frame(bytes.span.extracting(header...))
    let transport = header + frame.transport
    var reset = [UInt8](repeating: 0, count: header) + bytes[header..<transport + 20]
    var span = reset.mutableSpan
    span.store32(sequence, at: transport + 4)
    span[transport + 12] = 5 << 4
    span[transport + 13] = flags.rawValue
    span.store16(window, at: transport + 14)
    span.store32(0, at: transport + 16)
    finish(&reset, frame, header: header)
    return reset
  }

  /// Made of a frame that came from the other end.
  public static func answering(_ bytes: [UInt8], header: Int, sequence: UInt32) -> [UInt8] {
    var turned = bytes
    let frame = Frame(bytes.span.extracting(header...))
    func swap(_ a: Int, _ b: Int, _ count: Int) {
      for index in 0..<count { turned.swapAt(a + index, b + index) }
    }
    swap(header, header + 6, 6)
    let network = header + (frame.key.vlan == 0 && bytes[header + 12] != 0x81 ? 14 : 18)
    if frame.key.version == 4 { swap(network + 12, network + 16, 4) } else { swap(network + 8, network + 24, 16) }
    let transport = header + frame.transport
    swap(transport, transport + 2, 2)
    // It acknowledges all of what it answers.
    let length = UInt32(frame.payload.count) &+ (frame.flags.contains(.fin) ? 1 : 0)
    var span = turned.mutableSpan
    span.store32(frame.sequence &+ length, at: transport + 8)
    return of(turned, header: header, sequence: sequence)
  }

  /// Lengths and checksums.
  private static func finish(_ reset: inout [UInt8], _ frame: Frame, header: Int) {
    let transport = header + frame.transport
    let network = header + (reset[header + 12] == 0x81 && reset[header + 13] == 0 ? 18 : 14)
    let length = reset.count - transport
    if frame.key.version == 4 {
      store(UInt16(reset.count - network), &reset, at: network + 2)
      store(0, &reset, at: network + 10)
      store(~Checksum.sum(reset, network..<transport, 0), &reset, at: network + 10)
    } else {
      store(UInt16(reset.count - network - 40), &reset, at: network + 4)
    }
    let addresses = frame.key.version == 4 ? network + 12..<network + 20 : network + 8..<network + 40
    // The pseudo-header: addresses, protocol, length.
    let pseudo = UInt32(Checksum.sum(reset, addresses, UInt32(length) + 6))
    store(~Checksum.sum(reset, transport..<transport + 20, pseudo), &reset, at: transport + 16)
  }

  private static func store(_ value: UInt16, _ bytes: inout [UInt8], at offset: Int) {
    var span = bytes.mutableSpan
    span.store16(value, at: offset)
  }
}
