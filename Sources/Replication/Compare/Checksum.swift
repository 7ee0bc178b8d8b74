/// The Internet checksum of a header some of whose bytes change (RFC 1624, equation 3).
struct ChecksumUpdate {
  // HC' = ~(~HC + ~m + m'), with the sum kept signed: subtracting m is adding ~m modulo 2^16 - 1.
  private var difference = 0

  /// A 32-bit field that changes, `offset` bytes after the start of what the checksum covers.
  mutating func replace(_ old: UInt32, with new: UInt32, at offset: Int) {
    var change = Int(new >> 16) - Int(old >> 16) + Int(new & 0xffff) - Int(old & 0xffff)
    if offset & 1 != 0 {
      // An odd field straddles the 16-bit words: its bytes have each other's weights.
      change = (Int(new >> 24) - Int(old >> 24) + Int(new >> 8 & 0xff) - Int(old >> 8 & 0xff))
      change += (Int(new >> 16 & 0xff) - Int(old >> 16 & 0xff) + Int(new & 0xff) - Int(old & 0xff)) * 256
    }
    difference += change
  }

  func applied(to checksum: UInt16) -> UInt16 {
    var sum = (Int(~checksum) + difference) % 0xffff
    if sum < 0 { sum += 0xffff }
    // Of the two zeros, a sum of bytes that are not all zero is 0xffff.
    if sum == 0 { sum = 0xffff }
    return ~UInt16(sum)
  }
}

/// The Internet checksum of whole pieces.
enum Checksum {
  /// The ones' complement sum of 16-bit words (RFC 1071), not yet inverted; an odd last byte is left out.
  static func sum(_ bytes: [UInt8], _ range: Range<Int>, _ start: UInt32) -> UInt16 {
    var sum = start
    for at in stride(from: range.lowerBound, to: range.upperBound - 1, by: 2) { sum += UInt32(bytes.span.load16(at)) }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return UInt16(sum)
  }
}
