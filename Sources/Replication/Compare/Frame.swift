/// What an Ethernet frame is, found without trusting a byte of it: every length is checked against the bytes there are.
///
/// A frame that is malformed, fragmented or of an unknown sort is `whole`: it can only be compared as it stands.
/// Offload does not matter here: a segment as large as the guest hands it to the device is parsed like any other, and
/// checksums are not looked at (with VIRTIO_NET_HDR_F_NEEDS_CSUM they are not final).
public struct Frame: Equatable, Sendable {
  public enum Kind: Equatable, Sendable {
    case tcp
    /// UDP, ICMP and other protocols over IP: compared by payload, in order.
    case datagram
    /// ARP, fragments, anything malformed.
    case whole
  }

  /// TCP header flags; those that are not compared (PSH, URG, ECN) have no name here.
  public struct Flags: OptionSet, Sendable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let fin = Flags(rawValue: 0x01)
    public static let syn = Flags(rawValue: 0x02)
    public static let rst = Flags(rawValue: 0x04)
    public static let ack = Flags(rawValue: 0x10)
  }

  public private(set) var kind = Kind.whole
  /// Of `tcp` and `datagram`; zero otherwise.
  public private(set) var key = FlowKey.none
  /// Where the compared bytes are, in bytes from the start of the frame. Padding after the IP packet is outside.
  public private(set) var payload: Range<Int>
  /// Where the header after IP begins, in bytes from the start of the frame.
  public private(set) var transport = 0
  /// TCP only.
  public private(set) var sequence: UInt32 = 0
  public private(set) var acknowledgement: UInt32 = 0
  public private(set) var flags: Flags = []

  /// - Parameter bytes: the frame from its destination address, without the virtio-net header.
  public init(_ bytes: borrowing Span<UInt8>) {
    payload = 0..<bytes.count
    guard bytes.count >= 14 else { return }
    var type = bytes.load16(12)
    var network = 14
    if type == 0x8100 {
      guard bytes.count >= 18 else { return }
      key.vlan = bytes.load16(14) & 0x0fff
      type = bytes.load16(16)
      network = 18
    }
    let parsed: Bool
    switch type {
    case 0x0800: parsed = parseIPv4(bytes, at: network)
    case 0x86dd: parsed = parseIPv6(bytes, at: network)
    default: parsed = false
    }
    if !parsed { self = Frame(whole: bytes.count) }
  }

  /// - Parameter bytes: with `header` bytes in front, which are not looked at.
  public init(_ bytes: UnsafeRawBufferPointer, header: Int) {
    self = unsafe bytes.withMemoryRebound(to: UInt8.self) { bytes in
      unsafe Frame(Span(_unsafeElements: UnsafeBufferPointer(rebasing: bytes[min(header, bytes.count)...])))
    }
  }

  private init(whole count: Int) { payload = 0..<count }

  /// The segment that a piece was, as far as it is compared; its payload is elsewhere.
  init(_ piece: EarlyOutput, acknowledgement: UInt32) {
    kind = .tcp
    key = piece.flow
    payload = 0..<Int(piece.count)
    sequence = piece.sequence
    self.acknowledgement = acknowledgement
    flags = .ack
  }

  // RFC 791. Options are skipped: they are not compared.
  private mutating func parseIPv4(_ bytes: borrowing Span<UInt8>, at ip: Int) -> Bool {
    guard bytes.count - ip >= 20, bytes[ip] >> 4 == 4 else { return false }
    let header = Int(bytes[ip] & 0x0f) * 4
    let total = Int(bytes.load16(ip + 2))
    guard header >= 20, total >= header, total <= bytes.count - ip else { return false }
    // More fragments, or not the first one.
    guard bytes.load16(ip + 6) & 0x3fff == 0 else { return false }
    key.version = 4
    key.proto = bytes[ip + 9]
    key.source.low = UInt64(bytes.load32(ip + 12))
    key.destination.low = UInt64(bytes.load32(ip + 16))
    return parseTransport(bytes, ip + header..<ip + total)
  }

  // RFC 8200. A jumbogram says length 0 and so has no room for its headers: whole.
  private mutating func parseIPv6(_ bytes: borrowing Span<UInt8>, at ip: Int) -> Bool {
    guard bytes.count - ip >= 40, bytes[ip] >> 4 == 6 else { return false }
    let end = ip + 40 + Int(bytes.load16(ip + 4))
    guard end <= bytes.count else { return false }
    key.version = 6
    key.source = .init(high: bytes.load64(ip + 8), low: bytes.load64(ip + 16))
    key.destination = .init(high: bytes.load64(ip + 24), low: bytes.load64(ip + 32))
    var next = bytes[ip + 6]
    var at = ip + 40
    // Hop-by-hop, routing, destination options: each at least 8 bytes, so this ends.
    while next == 0 || next == 43 || next == 60 {
      guard end - at >= 8 else { return false }
      next = bytes[at]
      at += 8 + Int(bytes[at + 1]) * 8
      guard at <= end else { return false }
    }
    guard next != 44 else { return false }
    key.proto = next
    return parseTransport(bytes, at..<end)
  }

  private mutating func parseTransport(_ bytes: borrowing Span<UInt8>, _ packet: Range<Int>) -> Bool {
    let at = packet.lowerBound
    transport = at
    payload = packet
    kind = .datagram
    switch key.proto {
    case 6:
      guard packet.count >= 20 else { return false }
      let header = Int(bytes[at + 12] >> 4) * 4
      guard header >= 20, header <= packet.count else { return false }
      kind = .tcp
      key.sourcePort = bytes.load16(at)
      key.destinationPort = bytes.load16(at + 2)
      sequence = bytes.load32(at + 4)
      acknowledgement = bytes.load32(at + 8)
      flags = Flags(rawValue: bytes[at + 13] & 0x17)
      payload = at + header..<packet.upperBound
    case 17:
      guard packet.count >= 8 else { return false }
      let length = Int(bytes.load16(at + 4))
      guard length >= 8, length <= packet.count else { return false }
      key.sourcePort = bytes.load16(at)
      key.destinationPort = bytes.load16(at + 2)
      payload = at + 8..<at + length
    case 1, 58:
      guard packet.count >= 4 else { return false }
      key.sourcePort = bytes.load16(at)
      let type = bytes[at]
      let isEcho = key.proto == 1 ? type == 0 || type == 8 : type == 128 || type == 129
      if isEcho && packet.count >= 8 { key.destinationPort = bytes.load16(at + 4) }
      // Type and code are in the key; the checksum between them and the rest says nothing more.
      payload = at + 4..<packet.upperBound
    default: break
    }
    return true
  }
}
