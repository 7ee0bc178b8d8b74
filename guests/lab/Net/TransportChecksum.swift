/// Where the checksum of a TCP or UDP frame is, for a device that fills it in.
struct TransportChecksum {
  /// Of the TCP or UDP header, from the frame's start.
  let start: Int
  /// Of the checksum in that header.
  let offset: Int
  /// What the field must hold: the folded sum of the pseudo-header, as it lies in memory.
  let pseudoHeaderSum: UInt16

  /// Nil for other protocols and for fragments. `length` bytes of the frame lie together at `packet`.
  init?(_ packet: UnsafeRawPointer, _ length: Int) {
    guard length >= 34 else { return nil }
    let transport: UInt8
    var sum: UInt32
    switch packet.loadUnaligned(fromByteOffset: 12, as: UInt16.self).byteSwapped {
    case 0x0800:
      let fragment = Self.word(packet, 20) & 0x3fff
      let headerLength = Int(packet.load(fromByteOffset: 14, as: UInt8.self) & 15) * 4
      guard fragment == 0 else { return nil }
      transport = packet.load(fromByteOffset: 23, as: UInt8.self)
      start = 14 + headerLength
      sum = Self.word(packet, 16) &- UInt32(headerLength)
      for i in 0..<4 { sum &+= Self.word(packet, 26 + 2 * i) }
    case 0x86dd where length >= 54:
      transport = packet.load(fromByteOffset: 20, as: UInt8.self)
      start = 54
      sum = Self.word(packet, 18)
      for i in 0..<16 { sum &+= Self.word(packet, 22 + 2 * i) }
    default: return nil
    }
    guard transport == 6 || transport == 17 else { return nil }
    offset = transport == 6 ? 16 : 6
    guard length >= start + offset + 2 else { return nil }
    sum &+= UInt32(transport)
    sum = (sum & 0xffff) + (sum >> 16)
    sum = (sum & 0xffff) + (sum >> 16)
    pseudoHeaderSum = UInt16(truncatingIfNeeded: sum).byteSwapped
  }

  private static func word(_ packet: UnsafeRawPointer, _ offset: Int) -> UInt32 {
    UInt32(packet.loadUnaligned(fromByteOffset: offset, as: UInt16.self).byteSwapped)
  }
}
