import Foundation
import Harness
import Testing

extension Integration {
  /// TCP segments of the lab guest cross a real tap merged, in both directions, and arrive as they were sent.
  @Suite(
    "Segmentation offload",
    .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"))
  struct Offload {
    struct Case: Sendable, CustomTestStringConvertible {
      let cpus: Int
      let address: String
      var testDescription: String { "\(cpus) CPUs, \(address)" }
    }

    static let cases = [
      Case(cpus: 1, address: Namespace.guest), Case(cpus: 1, address: Namespace.guestIPv6),
      Case(cpus: 2, address: Namespace.guest), Case(cpus: 4, address: Namespace.guestIPv6),
    ]
    /// The longest frame of an interface with an MTU of 1500.
    static let longestPlainFrame = 1514.0

    static func guest(_ space: Namespace, cpus: Int = 1, _ words: String = "") throws -> Guest {
      let guest = try Guest(
        [
          "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cpus", "\(cpus)", "--net", "tap=\(space.tap)",
          "--cmdline", "service=bulk,kv ip=\(Namespace.guest)/24 ip6=\(Namespace.guestIPv6)/64 \(words)",
        ], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      return guest
    }

    /// Mean length of the frames that crossed the tap while `body` ran: `rx` from the guest, `tx` to it.
    static func meanFrame(_ space: Namespace, _ direction: String, while body: () throws -> Void) throws -> Double {
      func count(_ what: String) throws -> Double {
        let path = "/sys/class/net/\(space.tap)/statistics/\(direction)_\(what)"
        let text = try space.inside("cat", [path]).trimmingCharacters(in: .whitespacesAndNewlines)
        return try #require(Double(text))
      }
      let (bytes, packets) = (try count("bytes"), try count("packets"))
      try body()
      return (try count("bytes") - bytes) / max(1, try count("packets") - packets)
    }

    /// The bulk service's pattern: byte i = (131k + k/256) mod 256 with k = i mod 65536.
    static func pattern(periods: Int) -> [UInt8] {
      let period = (0..<65536).map { UInt8(truncatingIfNeeded: 131 * $0 + $0 >> 8) }
      return (0..<periods).flatMap { _ in period }
    }

    /// Up to `count` bytes, as many as come in half a minute.
    static func receive(_ count: Int, from client: Connection) throws -> [UInt8] {
      let deadline = Date(timeIntervalSinceNow: 30)
      var bytes: [UInt8] = []
      bytes.reserveCapacity(count)
      while bytes.count < count, Date() < deadline {
        let piece = try client.receive(min(65536, count - bytes.count), timeout: 2000)
        guard !piece.isEmpty else { break }
        bytes += piece
      }
      return bytes
    }

    static func adler32(_ bytes: [UInt8]) -> UInt32 {
      var (a, b): (UInt32, UInt32) = (1, 0)
      for byte in bytes {
        a = (a + UInt32(byte)) % 65521
        b = (b + a) % 65521
      }
      return b << 16 | a
    }

    @Test(arguments: cases) func bulkToTheHost_arrivesMergedAndWhole(_ test: Case) throws {
      let space = try Namespace()
      let guest = try Self.guest(space, cpus: test.cpus)
      let expected = Self.pattern(periods: 256)
      let client = try space.connect(port: 5001, to: test.address)
      let mean = try Self.meanFrame(space, "rx") {
        try client.send("SEND \(expected.count)\n")
        #expect(try Self.receive(expected.count, from: client) == expected, "every byte as the service makes it")
      }
      #expect(mean > Self.longestPlainFrame)
      withExtendedLifetime(guest) {}
    }

    @Test(arguments: cases) func bulkToTheGuest_arrivesMergedAndWhole(_ test: Case) throws {
      let space = try Namespace()
      let guest = try Self.guest(space, cpus: test.cpus)
      let bytes = Self.pattern(periods: 64)
      let answer = "DONE \(bytes.count) adler32=0x\(String(Self.adler32(bytes), radix: 16))\n"
      let client = try space.connect(port: 5001, to: test.address)
      let mean = try Self.meanFrame(space, "tx") {
        try client.send("RECV \(bytes.count)\n")
        try client.send(bytes)
        #expect(String(decoding: try client.receive(answer.utf8.count), as: UTF8.self) == answer)
      }
      #expect(mean > Self.longestPlainFrame)
      withExtendedLifetime(guest) {}
    }

    /// A value lies in pages of the store; it is received into them and sent from them.
    @Test(arguments: [Namespace.guest, Namespace.guestIPv6]) func largeValues_comeBackAsTheyWereStored(address: String)
      throws
    {
      let space = try Namespace()
      let guest = try Self.guest(space)
      let client = try space.connect(port: 6379, to: address)
      let value = (0..<1_000_000).map { _ in UInt8.random(in: 0...255) }
      let mean = try Self.meanFrame(space, "rx") {
        try client.send(Array("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$\(value.count)\r\n".utf8) + value + Array("\r\n".utf8))
        #expect(try client.receive(5) == Array("+OK\r\n".utf8))
        for _ in 0..<16 {
          #expect(try client.exchange("*2\r\n$3\r\nGET\r\n$1\r\nk\r\n", expecting: "$\(value.count)\r\n"))
          try #require(Self.receive(value.count, from: client) == value)
          #expect(try client.receive(2) == Array("\r\n".utf8))
        }
      }
      #expect(mean > Self.longestPlainFrame)
      withExtendedLifetime(guest) {}
    }

    /// On its way to another machine a merged frame is cut up and summed by the host, after the headers the guest wrote.
    @Test(arguments: ["10.0.0.9", "fd00::9"]) func framesTheHostCutsUp_areAcceptedElsewhere(address: String) throws {
      let (space, far) = (try Namespace(), try Namespace(taps: []))
      try space.inside("ip", ["link", "add", "br0", "type", "bridge"])
      try space.inside("ip", ["link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", far.name])
      for interface in [space.tap, "v0"] { try space.inside("ip", ["link", "set", interface, "master", "br0"]) }
      for interface in ["v0", "br0"] { try space.inside("ip", ["link", "set", interface, "up"]) }
      let (length, more) = address.contains(":") ? ("64", ["nodad"]) : ("24", [])
      try far.inside("ip", ["address", "add", "\(address)/\(length)", "dev", "v1"] + more)
      try far.inside("ip", ["link", "set", "v1", "up"])
      try space.disableOffloads("v0")
      try far.disableOffloads("v1")
      let guest = try Self.guest(space)
      let client = try far.connect(
        port: 5001, to: address.contains(":") ? Namespace.guestIPv6 : Namespace.guest)
      let expected = Self.pattern(periods: 128)
      let mean = try Self.meanFrame(space, "rx") {
        try client.send("SEND \(expected.count)\n")
        #expect(try Self.receive(expected.count, from: client) == expected)
      }
      #expect(mean > Self.longestPlainFrame)
      let counters = try far.inside("cat", ["/proc/net/snmp"]).split(separator: "\n").filter { $0.hasPrefix("Tcp:") }
      #expect(counters.last?.hasSuffix(" 0") == true, "TCP segments with a wrong checksum: \(counters)")
      withExtendedLifetime(guest) {}
    }

    /// What the tests above measure does not hold of itself.
    @Test func withoutIt_everyFrameFitsTheMTU() throws {
      let space = try Namespace()
      let guest = try Self.guest(space, cpus: 1, "tso=off")
      let bytes = Self.pattern(periods: 32)
      let client = try space.connect(port: 5001)
      let fromGuest = try Self.meanFrame(space, "rx") {
        try client.send("SEND \(bytes.count)\n")
        #expect(try Self.receive(bytes.count, from: client) == bytes)
      }
      #expect(fromGuest <= Self.longestPlainFrame)
      let sender = try space.connect(port: 5001)
      let toGuest = try Self.meanFrame(space, "tx") {
        try sender.send("RECV \(bytes.count)\n")
        try sender.send(bytes)
        #expect(try sender.receive(5) == Array("DONE ".utf8))
      }
      #expect(toGuest <= Self.longestPlainFrame)
      withExtendedLifetime(guest) {}
    }
  }
}
