internal import VirtioLayout

/// What a transmitted frame's virtio-net header may ask for (virtio 1.2 §5.1.6.2).
enum NetFrameRules {
  /// Shortest frame: an Ethernet header.
  static let minimumFrame = 14
  static let maximumFrame = 65_550

  /// Whether the header is consistent with the frame and with what was negotiated.
  static func accepts(_ header: NetHeader, frameLength: Int, features: UInt64) -> Bool {
    guard frameLength >= minimumFrame, frameLength <= maximumFrame else { return false }
    if header.flags & NetHeader.needsChecksum != 0 {
      guard features & NetFeature.checksum != 0 else { return false }
      // The checksum is two bytes at start + offset, inside the frame and behind its Ethernet header.
      let end = Int(header.checksumStart) + Int(header.checksumOffset) + 2
      guard Int(header.checksumStart) >= minimumFrame, end <= frameLength else { return false }
    }
    switch header.gsoType & ~NetHeader.gsoECN {
    case NetHeader.gsoNone: return header.gsoType == NetHeader.gsoNone
    case NetHeader.gsoTCPv4: guard features & NetFeature.hostTSO4 != 0 else { return false }
    case NetHeader.gsoTCPv6: guard features & NetFeature.hostTSO6 != 0 else { return false }
    default: return false
    }
    // Segmentation needs the checksum filled in, a size, and headers that end inside the frame.
    return header.flags & NetHeader.needsChecksum != 0 && header.gsoSize > 0
      && Int(header.headerLength) <= frameLength
  }

  /// Whether the driver has agreed to receive segments of this type: the host may still hold some from before a reset.
  static func mayDeliver(gsoType: UInt8, features: UInt64) -> Bool {
    switch gsoType & ~NetHeader.gsoECN {
    case NetHeader.gsoNone: true
    case NetHeader.gsoTCPv4: features & NetFeature.guestTSO4 != 0
    case NetHeader.gsoTCPv6: features & NetFeature.guestTSO6 != 0
    default: false
    }
  }

  /// The header as the host takes it: only the fields above, the rest zero.
  static func encode(_ header: NetHeader, into bytes: inout [UInt8]) {
    let checksums = header.flags & NetHeader.needsChecksum != 0
    let segments = header.gsoType != NetHeader.gsoNone
    bytes[0] = header.flags & NetHeader.needsChecksum
    bytes[1] = header.gsoType
    put(segments ? header.headerLength : 0, at: 2, in: &bytes)
    put(segments ? header.gsoSize : 0, at: 4, in: &bytes)
    put(checksums ? header.checksumStart : 0, at: 6, in: &bytes)
    put(checksums ? header.checksumOffset : 0, at: 8, in: &bytes)
    put(0, at: 10, in: &bytes)
  }

  private static func put(_ value: UInt16, at offset: Int, in bytes: inout [UInt8]) {
    bytes[offset] = UInt8(truncatingIfNeeded: value)
    bytes[offset + 1] = UInt8(truncatingIfNeeded: value >> 8)
  }
}
