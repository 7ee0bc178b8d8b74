/// Frames written out byte by byte, independently of the parser under test.
struct TCPSegment {
  static let fin: UInt8 = 1
  static let syn: UInt8 = 2
  static let rst: UInt8 = 4
  static let psh: UInt8 = 8
  static let ack: UInt8 = 16

  var version = 4
  var guestPort: UInt16 = 80
  var peerPort: UInt16 = 40000
  /// From the guest to its peer, or back.
  var isIncoming = false
  var sequence: UInt32 = 1000
  var acknowledgement: UInt32 = 5000
  var flags = TCPSegment.ack
  var window: UInt16 = 512
  var ipID: UInt16 = 1
  /// A multiple of four bytes.
  var options: [UInt8] = []
  var payload: [UInt8] = []
  /// IPv6: headers between IPv6 and TCP, and the protocol number of the first of them.
  var extensions: (first: UInt8, bytes: [UInt8]) = (6, [])

  var bytes: [UInt8] {
    var tcp = big16(isIncoming ? peerPort : guestPort) + big16(isIncoming ? guestPort : peerPort)
    tcp += big32(sequence) + big32(acknowledgement)
    tcp += [UInt8((20 + options.count) / 4) << 4, flags] + big16(window) + [0, 0, 0, 0] + options + payload
    return packet(
      version: version, proto: 6, isIncoming: isIncoming, id: ipID, extensions: extensions, checksumAt: 16, tcp)
  }
}

func udp(_ payload: [UInt8], port: UInt16 = 53, version: Int = 4, id: UInt16 = 1) -> [UInt8] {
  let datagram = big16(port) + big16(9999) + big16(UInt16(8 + payload.count)) + [0, 0] + payload
  return packet(version: version, proto: 17, isIncoming: false, id: id, extensions: (17, []), checksumAt: 6, datagram)
}

func echoReply(_ payload: [UInt8], identifier: UInt16 = 7, sequence: UInt16 = 1, version: Int = 4) -> [UInt8] {
  let message: [UInt8] = [version == 4 ? 0 : 129, 0, 0, 0] + big16(identifier) + big16(sequence) + payload
  let proto: UInt8 = version == 4 ? 1 : 58
  return packet(
    version: version, proto: proto, isIncoming: false, id: 1, extensions: (proto, []), checksumAt: nil, message)
}

func arp(_ last: UInt8) -> [UInt8] {
  link(type: 0x0806) + [0, 1, 8, 0, 6, 4, 0, 2] + [UInt8](repeating: last, count: 20)
}

func link(type: UInt16) -> [UInt8] { [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2] + big16(type) }

func packet(
  version: Int, proto: UInt8, isIncoming: Bool, id: UInt16, extensions: (first: UInt8, bytes: [UInt8]),
  checksumAt: Int?, _ transport: [UInt8]
) -> [UInt8] {
  let guest: [UInt8] = version == 4 ? [10, 0, 0, 2] : [UInt8](repeating: 0xfd, count: 15) + [2]
  let peer: [UInt8] = version == 4 ? [10, 0, 0, 9] : [UInt8](repeating: 0xfd, count: 15) + [9]
  let addresses = isIncoming ? peer + guest : guest + peer
  var transport = transport
  if let checksumAt {
    let sum = internetSum(addresses + [0, proto] + big32(UInt32(transport.count)) + transport)
    transport.replaceSubrange(checksumAt..<checksumAt + 2, with: big16(~sum))
  }
  if version == 4 {
    let total = UInt16(truncatingIfNeeded: 20 + transport.count)
    return link(type: 0x0800) + [0x45, 0] + big16(total) + big16(id) + [0x40, 0, 64, proto, 0, 0] + addresses
      + transport
  }
  let length = UInt16(truncatingIfNeeded: extensions.bytes.count + transport.count)
  let first = extensions.bytes.isEmpty ? proto : extensions.first
  return link(type: 0x86dd) + [0x60, 0, 0, 0] + big16(length) + [first, 64] + addresses + extensions.bytes + transport
}

/// Whether the TCP checksum of a frame without IP options or extension headers is right, by summing up all of it.
func hasRightChecksum(_ frame: [UInt8]) -> Bool {
  let isIPv4 = frame[12] == 8
  let addresses = isIPv4 ? frame[26..<34] : frame[22..<54]
  let transport = frame[(isIPv4 ? 34 : 54)...]
  return internetSum(Array(addresses) + [0, 6] + big32(UInt32(transport.count)) + transport) == 0xffff
}

func internetSum(_ bytes: [UInt8]) -> UInt16 {
  var sum: UInt32 = 0
  for index in bytes.indices { sum += index & 1 == 0 ? UInt32(bytes[index]) << 8 : UInt32(bytes[index]) }
  while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
  return UInt16(sum)
}

func big16(_ value: UInt16) -> [UInt8] { [UInt8(value >> 8), UInt8(truncatingIfNeeded: value)] }
func big32(_ value: UInt32) -> [UInt8] { big16(UInt16(value >> 16)) + big16(UInt16(truncatingIfNeeded: value)) }

/// SplitMix64: the same numbers for the same seed.
struct SeededGenerator: RandomNumberGenerator {
  var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ z >> 30) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ z >> 27) &* 0x94d0_49bb_1331_11eb
    return z ^ z >> 31
  }
}
