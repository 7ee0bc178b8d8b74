public import StateCodec

/// The addresses that a guest has claimed, by ARP (RFC 826) and neighbour discovery (RFC 4861), and the link address with which it
/// claimed each: what the network has to hear when the card is somewhere else. A guest may have a link address of its own, or several
/// (macvlan, bridged containers). Only what is said there counts: a guest may pass on packets of others, whose addresses are not its
/// own. A value.
public struct CardAddresses: Equatable, Sendable {
  /// Addresses of each family that are kept: the newest.
  public static let limit = 16

  public struct Claim: Equatable, Sendable {
    /// 4 or 16 bytes.
    public let address: [UInt8]
    /// 6 bytes.
    public let link: [UInt8]
    /// The VLAN of an 802.1Q tag, 0 for none.
    public let vlan: UInt16
  }

  /// In the order in which they were claimed.
  public private(set) var ipv4: [Claim] = []
  public private(set) var ipv6: [Claim] = []

  public init() {}

  /// Takes in what the guest has sent, from its destination address on.
  public mutating func heard(_ frame: borrowing Span<UInt8>) {
    guard frame.count >= 18 else { return }
    let isTagged = frame.load16(12) == 0x8100
    let vlan = isTagged ? frame.load16(14) & 0x0fff : 0
    // Behind the Ethernet header.
    let at = isTagged ? 18 : 14
    switch frame.load16(at - 2) {
    case 0x0806:
      // Ethernet and IPv4: the sender's addresses of both kinds.
      guard frame.count >= at + 28, frame.load32(at) == 0x1_0800, frame.load16(at + 4) == 0x604 else { return }
      Self.add(frame, at + 14..<at + 18, link: at + 8, vlan, to: &ipv4)
    case 0x86dd:
      guard frame.count >= at + 48, frame[at + 6] == 58 else { return }
      switch frame[at + 40] {
      // A router or neighbour solicitation, from one of its addresses if from any.
      case 133: Self.add(frame, at + 8..<at + 24, link: Self.option(frame, at + 48), vlan, to: &ipv6)
      case 135: Self.add(frame, at + 8..<at + 24, link: Self.option(frame, at + 64), vlan, to: &ipv6)
      // An advertisement: its target.
      case 136 where frame.count >= at + 64:
        Self.add(frame, at + 48..<at + 64, link: Self.option(frame, at + 64), vlan, to: &ipv6)
      default: break
      }
    default: break
    }
  }

  /// Where the link address of a neighbour discovery message is: in its first option (RFC 4861 §4.6.1), or the frame's source.
  private static func option(_ frame: borrowing Span<UInt8>, _ at: Int) -> Int {
    frame.count >= at + 8 && (frame[at] == 1 || frame[at] == 2) && frame[at + 1] == 1 ? at + 2 : 6
  }

  private static func add(
    _ frame: borrowing Span<UInt8>, _ range: Range<Int>, link: Int, _ vlan: UInt16, to list: inout [Claim]
  ) {
    // A group has no place.
    guard frame[link] & 1 == 0 else { return }
    let claim = Claim(address: bytes(frame, range), link: bytes(frame, link..<link + 6), vlan: vlan)
    guard claim.address.contains(where: { $0 != 0 }), list.last != claim else { return }
    list.removeAll { $0.address == claim.address && $0.vlan == vlan }
    list.append(claim)
    if list.count > limit { list.removeFirst() }
  }

  private static func bytes(_ frame: borrowing Span<UInt8>, _ range: Range<Int>) -> [UInt8] {
    var bytes: [UInt8] = []
    for index in range { bytes.append(frame[index]) }
    return bytes
  }

  public var encoded: [UInt8] {
    var out = StateWriter()
    for list in [ipv4, ipv6] {
      out.put(UInt8(list.count))
      for claim in list {
        for byte in claim.address + claim.link { out.put(byte) }
        out.put(claim.vlan)
      }
    }
    return out.bytes
  }

  public init(decoding bytes: [UInt8]) throws(StateError) {
    var reader = StateReader(bytes)
    ipv4 = try Self.list(&reader, 4)
    ipv6 = try Self.list(&reader, 16)
    guard reader.remaining == 0 else { throw .invalid("bytes behind a card's addresses") }
  }

  private static func list(_ reader: inout StateReader, _ size: Int) throws(StateError) -> [Claim] {
    var list: [Claim] = []
    let count = try reader.get(UInt8.self)
    guard count <= limit else { throw .invalid("\(count) addresses of a card") }
    for _ in 0..<count {
      var bytes: [UInt8] = []
      for _ in 0..<size + 6 { bytes.append(try reader.get()) }
      list.append(Claim(address: Array(bytes[..<size]), link: Array(bytes[size...]), vlan: try reader.get()))
    }
    return list
  }

  // MARK: Announcements

  /// Frames that tell everybody on the wire where the card is: a reverse ARP request for switches from each link address, a gratuitous
  /// ARP request for each IPv4 address (RFC 5227 §3) and an unsolicited neighbour advertisement for each IPv6 address
  /// (RFC 4861 §7.2.6).
  /// - Parameter mac: the card's, 6 bytes.
  public func announcements(_ mac: [UInt8]) -> [[UInt8]] {
    let none = [UInt8](repeating: 0, count: 4)
    var places: [(link: [UInt8], vlan: UInt16)] = [(mac, 0)]
    for claim in ipv4 + ipv6 where !places.contains(where: { $0 == (claim.link, claim.vlan) }) {
      places.append((claim.link, claim.vlan))
    }
    return places.map { Self.arp($0.link, $0.vlan, 0x8035, 3, sender: none, targetLink: $0.link, target: none) }
      + ipv4.map {
        let nobody = [UInt8](repeating: 0, count: 6)
        return Self.arp($0.link, $0.vlan, 0x0806, 1, sender: $0.address, targetLink: nobody, target: $0.address)
      } + ipv6.map(Self.advertisement)
  }

  private static func ethernet(_ to: [UInt8], _ from: [UInt8], _ vlan: UInt16, _ type: UInt16) -> [UInt8] {
    func big(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(value & 0xff)] }
    return to + from + (vlan == 0 ? [] : big(0x8100) + big(vlan)) + big(type)
  }

  private static func arp(
    _ link: [UInt8], _ vlan: UInt16, _ type: UInt16, _ operation: UInt8, sender: [UInt8], targetLink: [UInt8],
    target: [UInt8]
  ) -> [UInt8] {
    let body: [UInt8] = [0, 1, 8, 0, 6, 4, 0, operation] + link + sender + targetLink + target
    return ethernet([UInt8](repeating: 0xff, count: 6), link, vlan, type) + body + [UInt8](repeating: 0, count: 18)
  }

  private static func advertisement(_ claim: Claim) -> [UInt8] {
    let everybody: [UInt8] = [0xff, 2] + [UInt8](repeating: 0, count: 13) + [1]
    // Override: what caches hold is not true any more. With the target's link address.
    var message: [UInt8] = [136, 0, 0, 0, 0x20, 0, 0, 0] + claim.address + [2, 1] + claim.link
    let covered = claim.address + everybody + [0, 0, 0, UInt8(message.count), 0, 0, 0, 58] + message
    let code = ~Checksum.sum(covered, covered.indices, 0)
    (message[2], message[3]) = (UInt8(code >> 8), UInt8(code & 0xff))
    let ip: [UInt8] = [0x60, 0, 0, 0, 0, UInt8(message.count), 58, 255] + claim.address + everybody
    return ethernet([0x33, 0x33, 0, 0, 0, 1], claim.link, claim.vlan, 0x86dd) + ip + message
  }
}
