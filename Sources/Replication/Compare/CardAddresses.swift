public import StateCodec

/// The addresses that a guest has claimed for its card, by ARP (RFC 826) and neighbour discovery (RFC 4861): what the network has
/// to hear when the card is somewhere else. Only what is said there counts: a guest may pass on packets of others, whose
/// addresses are not its own. A value.
public struct CardAddresses: Equatable, Sendable {
  /// Addresses of each family that are kept: the newest.
  public static let limit = 16

  /// In the order in which they were claimed, 4 and 16 bytes.
  public private(set) var ipv4: [[UInt8]] = []
  public private(set) var ipv6: [[UInt8]] = []

  public init() {}

  /// Takes in what the guest has sent, from its destination address on.
  public mutating func heard(_ frame: borrowing Span<UInt8>) {
    guard frame.count >= 42 else { return }
    switch frame.load16(12) {
    case 0x0806:
      // Ethernet and IPv4: whoever says it, as sender.
      guard frame.load32(14) == 0x1_0800, frame.load16(18) == 0x604 else { return }
      Self.add(frame, 28..<32, to: &ipv4)
    case 0x86dd:
      guard frame.count >= 62, frame[20] == 58 else { return }
      switch frame[54] {
      // A router or neighbour solicitation, from one of its addresses if from any.
      case 133, 135: Self.add(frame, 22..<38, to: &ipv6)
      // An advertisement: its target.
      case 136 where frame.count >= 78: Self.add(frame, 62..<78, to: &ipv6)
      default: break
      }
    default: break
    }
  }

  private static func add(_ frame: borrowing Span<UInt8>, _ range: Range<Int>, to list: inout [[UInt8]]) {
    var address: [UInt8] = []
    for index in range { address.append(frame[index]) }
    guard address.contains(where: { $0 != 0 }), list.last != address else { return }
    list.removeAll { $0 == address }
    list.append(address)
    if list.count > limit { list.removeFirst() }
  }

  public var encoded: [UInt8] {
    var out = StateWriter()
    for list in [ipv4, ipv6] {
      out.put(UInt8(list.count))
      for address in list { for byte in address { out.put(byte) } }
    }
    return out.bytes
  }

  public init(decoding bytes: [UInt8]) throws(StateError) {
    var reader = StateReader(bytes)
    ipv4 = try Self.list(&reader, 4)
    ipv6 = try Self.list(&reader, 16)
    guard reader.remaining == 0 else { throw .invalid("bytes behind a card's addresses") }
  }

  private static func list(_ reader: inout StateReader, _ size: Int) throws(StateError) -> [[UInt8]] {
    var list: [[UInt8]] = []
    let count = try reader.get(UInt8.self)
    guard count <= limit else { throw .invalid("\(count) addresses of a card") }
    for _ in 0..<count {
      var address: [UInt8] = []
      for _ in 0..<size { address.append(try reader.get()) }
      list.append(address)
    }
    return list
  }

  // MARK: Announcements

  /// Frames that tell everybody on the wire where the card is: a reverse ARP request for switches, a gratuitous ARP request for
  /// each IPv4 address (RFC 5227 §3) and an unsolicited neighbour advertisement for each IPv6 address (RFC 4861 §7.2.6).
  /// - Parameter mac: the card's, 6 bytes.
  public func announcements(_ mac: [UInt8]) -> [[UInt8]] {
    let none = [UInt8](repeating: 0, count: 4)
    return [Self.arp(mac, 0x8035, 3, sender: none, targetLink: mac, target: none)]
      + ipv4.map { Self.arp(mac, 0x0806, 1, sender: $0, targetLink: [UInt8](repeating: 0, count: 6), target: $0) }
      + ipv6.map { Self.advertisement(mac, $0) }
  }

  private static func arp(
    _ mac: [UInt8], _ type: UInt16, _ operation: UInt8, sender: [UInt8], targetLink: [UInt8], target: [UInt8]
  ) -> [UInt8] {
    let head: [UInt8] = [UInt8](repeating: 0xff, count: 6) + mac + [UInt8(type >> 8), UInt8(type & 0xff)]
    let body: [UInt8] = [0, 1, 8, 0, 6, 4, 0, operation] + mac + sender + targetLink + target
    return head + body + [UInt8](repeating: 0, count: 18)
  }

  private static func advertisement(_ mac: [UInt8], _ address: [UInt8]) -> [UInt8] {
    let everybody: [UInt8] = [0xff, 2] + [UInt8](repeating: 0, count: 13) + [1]
    // Override: what caches hold is not true any more. With the target's link address.
    var message: [UInt8] = [136, 0, 0, 0, 0x20, 0, 0, 0] + address + [2, 1] + mac
    let covered = address + everybody + [0, 0, 0, UInt8(message.count), 0, 0, 0, 58] + message
    let code = ~Checksum.sum(covered, covered.indices, 0)
    (message[2], message[3]) = (UInt8(code >> 8), UInt8(code & 0xff))
    let ip: [UInt8] = [0x60, 0, 0, 0, 0, UInt8(message.count), 58, 255] + address + everybody
    return [0x33, 0x33, 0, 0, 0, 1] + mac + [0x86, 0xdd] + ip + message
  }
}
