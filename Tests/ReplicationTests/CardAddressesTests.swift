import Replication
import StateCodec
import Testing

@Suite("Addresses of a card") struct CardAddressesTests {
  private let mac: [UInt8] = [0x52, 0x54, 0, 1, 2, 3]
  private let four: [UInt8] = [10, 0, 0, 2]
  private let six: [UInt8] = [0xfd, 0] + [UInt8](repeating: 0, count: 13) + [2]
  private let router: [UInt8] = [0xfe, 0x80] + [UInt8](repeating: 0, count: 13) + [1]

  private func arp(sender: [UInt8], operation: UInt8 = 1) -> [UInt8] {
    [UInt8](repeating: 0xff, count: 6) + mac + [8, 6, 0, 1, 8, 0, 6, 4, 0, operation] + mac + sender
      + [UInt8](repeating: 0, count: 6) + [10, 0, 0, 1]
  }

  private func icmp(_ type: UInt8, source: [UInt8], target: [UInt8]) -> [UInt8] {
    [0x33, 0x33, 0, 0, 0, 1] + mac + [0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255] + source + router
      + [type, 0, 0, 0, 0, 0, 0, 0] + target
  }

  @Test func whatTheGuestClaims_isLearned_andNothingElse() {
    var addresses = CardAddresses()
    addresses.heard(arp(sender: four).span)
    addresses.heard(icmp(136, source: router, target: six).span)
    addresses.heard(icmp(135, source: six, target: router).span)
    #expect(addresses.ipv4 == [four] && addresses.ipv6 == [six])
    let unspecified = [UInt8](repeating: 0, count: 16)
    // Asking whether an address is free claims none; a packet that is passed on has another's source.
    addresses.heard(arp(sender: [0, 0, 0, 0]).span)
    addresses.heard(icmp(135, source: unspecified, target: six).span)
    addresses.heard(icmp(128, source: router, target: six).span)
    addresses.heard(udp([1, 2, 3]).span)
    #expect(addresses.ipv4 == [four] && addresses.ipv6 == [six])
  }

  @Test func everyTruncation_isHarmless() {
    var addresses = CardAddresses()
    for frame in [arp(sender: four), icmp(136, source: router, target: six)] {
      for count in 0..<frame.count { addresses.heard(Array(frame[..<count]).span) }
    }
    #expect(addresses.ipv4 == [] && addresses.ipv6 == [])
  }

  @Test func theNewestAreKept() {
    var addresses = CardAddresses()
    for last in 1...40 as ClosedRange<UInt8> { addresses.heard(arp(sender: [10, 0, 0, last]).span) }
    addresses.heard(arp(sender: [10, 0, 0, 30]).span)
    #expect(addresses.ipv4.count == CardAddresses.limit && addresses.ipv4.last == [10, 0, 0, 30])
    #expect(Set(addresses.ipv4).count == CardAddresses.limit)
  }

  @Test func encoding_roundTrips_andRefusesWhatIsNone() throws {
    var addresses = CardAddresses()
    addresses.heard(arp(sender: four).span)
    addresses.heard(icmp(136, source: router, target: six).span)
    let bytes = addresses.encoded
    #expect(try CardAddresses(decoding: bytes) == addresses)
    for count in 0..<bytes.count {
      #expect(throws: StateError.self) { try CardAddresses(decoding: Array(bytes[..<count])) }
    }
    #expect(throws: StateError.self) { try CardAddresses(decoding: bytes + [0]) }
    #expect(throws: StateError.self) { try CardAddresses(decoding: [255] + bytes) }
  }

  @Test func announcements_areAsTheStandardsSay() throws {
    var addresses = CardAddresses()
    addresses.heard(arp(sender: four).span)
    addresses.heard(icmp(136, source: router, target: six).span)
    let frames = addresses.announcements(mac)
    try #require(frames.count == 3)
    let everybody = [UInt8](repeating: 0xff, count: 6)
    let head: [UInt8] = [0, 1, 8, 0, 6, 4, 0]
    #expect(
      Array(frames[0][..<42]) == everybody + mac + [0x80, 0x35] + head + [3] + mac + [0, 0, 0, 0] + mac + [0, 0, 0, 0])
    let gratuitous = everybody + mac + [8, 6] + head + [1] + mac + four + [0, 0, 0, 0, 0, 0] + four
    #expect(Array(frames[1][..<42]) == gratuitous)
    #expect(frames[0].count == 60 && frames[1].count == 60, "no shorter than Ethernet allows")
    let advertisement = frames[2]
    #expect(Array(advertisement[..<14]) == [0x33, 0x33, 0, 0, 0, 1] + mac + [0x86, 0xdd])
    #expect(Array(advertisement[14..<22]) == [0x60, 0, 0, 0, 0, 32, 58, 255])
    #expect(Array(advertisement[22..<38]) == six && Array(advertisement[54..<56]) == [136, 0])
    #expect(advertisement[58] == 0x20, "override, and nobody had asked")
    #expect(Array(advertisement[62...]) == six + [2, 1] + mac)
    // RFC 4443 §2.3: over the pseudo-header, all ones.
    var sum = 32 + 58
    for index in stride(from: 22, to: advertisement.count, by: 2) {
      sum += Int(advertisement[index]) << 8 | Int(advertisement[index + 1])
    }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    #expect(sum == 0xffff)
  }
}
