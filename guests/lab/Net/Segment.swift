import LabC

/// Where the TCP or UDP header of a frame is, for a device that fills in its checksum.
struct TransportHeader {
  let isTCP: Bool
  let isIPv6: Bool
  /// From the frame's start.
  let start: Int

  /// Nil for other protocols and for fragments. `length` bytes of the frame lie together at `packet`.
  init?(_ packet: UnsafeRawPointer, _ length: Int) {
    guard length >= 34 else { return nil }
    let transport: UInt8
    switch word(packet, 12) {
    case 0x0800:
      guard word(packet, 20) & 0x3fff == 0 else { return nil }
      isIPv6 = false
      start = 14 + Int(packet.load(fromByteOffset: 14, as: UInt8.self) & 15) * 4
      transport = packet.load(fromByteOffset: 23, as: UInt8.self)
    case 0x86dd where length >= 54:
      isIPv6 = true
      start = 54
      transport = packet.load(fromByteOffset: 20, as: UInt8.self)
    default: return nil
    }
    guard transport == 6 || transport == 17 else { return nil }
    isTCP = transport == 6
    guard length >= start + (isTCP ? 20 : 8) else { return nil }
  }

  /// Of the checksum, from the header's start.
  var checksumOffset: Int { isTCP ? 16 : 6 }

  /// What a checksum field must hold for the device to fill it in: the folded sum of the pseudo-header (of `length` bytes
  /// from the TCP or UDP header on), as it lies in memory.
  func pseudoHeaderSum(_ packet: UnsafeRawPointer, _ length: Int) -> UInt16 {
    var sum = UInt32(truncatingIfNeeded: length) &+ (isTCP ? 6 : 17)
    for i in 0..<(isIPv6 ? 16 : 4) { sum &+= word(packet, (isIPv6 ? 22 : 26) + 2 * i) }
    sum = (sum & 0xffff) + (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16)
    return UInt16(truncatingIfNeeded: sum).byteSwapped
  }
}

/// A TCP frame that carries data and nothing out of the ordinary: one of several in a row that may leave as one.
struct Segment {
  private static let push: UInt8 = 0x08
  private static let fin: UInt8 = 0x01
  private static let acknowledgement: UInt8 = 0x10

  let packet: UnsafeMutableRawPointer
  let transport: TransportHeader
  /// Ethernet, IP and TCP.
  let headerLength: Int
  let dataLength: Int
  let flags: UInt8

  init?(_ frame: UnsafeMutablePointer<pbuf>) {
    let packet = UnsafeMutableRawPointer(frame.pointee.payload).unsafelyUnwrapped
    guard let transport = TransportHeader(packet, Int(frame.pointee.len)), transport.isTCP else { return nil }
    let tcp = packet + transport.start
    flags = tcp.load(fromByteOffset: 13, as: UInt8.self)
    guard flags & ~(Self.push | Self.fin) == Self.acknowledgement else { return nil }
    headerLength = transport.start + Int(tcp.load(fromByteOffset: 12, as: UInt8.self) >> 4) * 4
    dataLength = Int(frame.pointee.tot_len) - headerLength
    guard headerLength <= Int(frame.pointee.len), dataLength > 0 else { return nil }
    self.packet = packet
    self.transport = transport
  }

  /// Whether another segment may come behind this one in the same frame.
  var isOpen: Bool { flags == Self.acknowledgement }

  private var sequence: UInt32 {
    packet.loadUnaligned(fromByteOffset: transport.start + 4, as: UInt32.self).byteSwapped
  }

  /// Whether this is the next segment of the same connection as `other`, with the same headers where they must not differ.
  func follows(_ other: Segment) -> Bool {
    guard other.isOpen, headerLength == other.headerLength, transport.start == other.transport.start,
      sequence == other.sequence &+ UInt32(other.dataLength)
    else { return false }
    func same(_ from: Int, _ to: Int) -> Bool { memcmp(packet + from, other.packet + from, to - from) == 0 }
    let tcp = transport.start
    // All but lengths, IPv4 identification, checksums, sequence number and flags.
    return same(0, 16) && same(20, transport.isIPv6 ? 26 : 24) && same(26, tcp + 4)
      && same(tcp + 8, tcp + 13) && same(tcp + 14, tcp + 16) && same(tcp + 18, headerLength)
  }
}

private func word(_ packet: UnsafeRawPointer, _ offset: Int) -> UInt32 {
  UInt32(packet.loadUnaligned(fromByteOffset: offset, as: UInt16.self).byteSwapped)
}
