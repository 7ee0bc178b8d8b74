import Replication
import StateCodec
import Testing

@Suite("Addresses of a card") struct CardAddressesTests {
  private let mac: [UInt8] = [0x52, 0x54, 0, 1, 2, 3]
  private let four: [UInt8] = [10, 0, 0, 2]
  private let six: [UInt8] = [0xfd, 0] + [UInt8](repeating: 0, count: 13) + [2]
  private let router: [UInt8] = [0xfe, 0x80] + [UInt8](repeating: 0, count: 13) + [1]

  private func arp(
    sender: [UInt8], operation: UInt8 = 1, link: [UInt8]? = nil, tag: [UInt8] = []
  ) -> [UInt8] {
    let link = link ?? mac
    return [UInt8](repeating: 0xff, count: 6) + link + tag + [8, 6, 0, 1, 8, 0, 6, 4, 0, operation] + link + sender
      + [UInt8](repeating: 0, count: 6) + [10, 0, 0, 1]
  }

  private func icmp(
    _ type: UInt8, source: [UInt8], target: [UInt8], link: [UInt8]? = nil, options: [UInt8] = [], tag: [UInt8] = []
  ) -> [UInt8] {
    [0x33, 0x33, 0, 0, 0, 1] + (link ?? mac) + tag + [0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255] + source + router
      + [type, 0, 0, 0, 0, 0, 0, 0] + target + options
  }

  /// A guest whose address is not the card's (set by hand, macvlan, bridged containers) is reached there.
  @Test func eachAddress_isAnnouncedWithTheLinkAddressThatClaimedIt() {
    let (own, other): ([UInt8], [UInt8]) = ([2, 0, 0, 0, 0, 0x99], [2, 0, 0, 0, 0, 0x98])
    let tag: [UInt8] = [0x81, 0, 0, 7]
    var addresses = CardAddresses()
    addresses.heard(arp(sender: four, link: own).span)
    addresses.heard(arp(sender: [10, 0, 0, 3], link: other, tag: tag).span)
    // A bridge passes it on: what counts is the option.
    addresses.heard(icmp(136, source: router, target: six, options: [2, 1] + own).span)
    addresses.heard(icmp(135, source: router, target: six, link: other, tag: tag).span)
    let frames = addresses.announcements(mac)
    func sources(_ type: [UInt8]) -> [[UInt8]] {
      frames.filter { Array($0[12..<14]) == type }.map { Array($0[6..<12]) }
    }
    #expect(sources([0x80, 0x35]) == [mac, own])
    #expect(sources([8, 6]) == [own] && sources([0x86, 0xdd]) == [own])
    let tagged = frames.filter { Array($0[12..<16]) == tag }
    #expect(tagged.map { Array($0[16..<18]) } == [[0x80, 0x35], [8, 6], [0x86, 0xdd]])
    #expect(tagged.allSatisfy { Array($0[6..<12]) == other })
    #expect(Array(tagged[1][26..<36]) == other + [10, 0, 0, 3])
    // It has moved to another link address.
    addresses.heard(arp(sender: four, link: mac).span)
    #expect(addresses.ipv4.filter { $0.address == four }.map(\.link) == [mac])
    // A group is nowhere.
    addresses.heard(arp(sender: [10, 0, 0, 4], link: [1, 0, 0, 0, 0, 1]).span)
    #expect(!addresses.ipv4.contains { $0.address == [10, 0, 0, 4] })
  }

  @Test func whatTheGuestClaims_isLearned_andNothingElse() {
    var addresses = CardAddresses()
    addresses.heard(arp(sender: four).span)
    addresses.heard(icmp(136, source: router, target: six).span)
    addresses.heard(icmp(135, source: six, target: router).span)
    #expect(addresses.ipv4.map(\.address) == [four] && addresses.ipv6.map(\.address) == [six])
    let unspecified = [UInt8](repeating: 0, count: 16)
    // Asking whether an address is free claims none; a packet that is passed on has another's source.
    addresses.heard(arp(sender: [0, 0, 0, 0]).span)
    addresses.heard(icmp(135, source: unspecified, target: six).span)
    addresses.heard(icmp(128, source: router, target: six).span)
    addresses.heard(udp([1, 2, 3]).span)
    #expect(addresses.ipv4.map(\.address) == [four] && addresses.ipv6.map(\.address) == [six])
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
    #expect(addresses.ipv4.count == CardAddresses.limit && addresses.ipv4.last?.address == [10, 0, 0, 30])
    #expect(Set(addresses.ipv4.map(\.address)).count == CardAddresses.limit)
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
