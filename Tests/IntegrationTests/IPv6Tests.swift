import Foundation
import Harness
import Testing

extension Integration {
  /// Real clients against the lab guest over IPv6. Nothing works before the guest has answered a neighbour solicitation,
  /// which comes by multicast.
  @Suite("IPv6", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"))
  struct IPv6 {
    static func guest(_ space: Namespace, _ words: String = "ip6=\(Namespace.guestIPv6)/64", _ more: String...) throws
      -> Guest
    {
      let guest = try Guest(
        ["run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=kv,echo \(words)"] + more,
        in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      return guest
    }

    @Test(arguments: [1, 2, 4]) func redis_hasOneStoreForBothFamilies(cpus: Int) throws {
      let space = try Namespace()
      let words = "ip=\(Namespace.guest)/24 ip6=\(Namespace.guestIPv6)/64"
      let guest = try Self.guest(space, words, "--net", "tap=\(space.tap)", "--cpus", "\(cpus)")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guestIPv6, "set", "k", "six"]) == "OK\n")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guestIPv6, "get", "k"]) == "six\n")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"]) == "six\n")
      withExtendedLifetime(guest) {}
    }

    @Test(arguments: [Namespace.guestIPv6, "fe80::ff:fe00:7%tap0"])
    func ping_isAnsweredOnTheGlobalAddressAndTheOneFromTheMAC(address: String) throws {
      let space = try Namespace()
      let guest = try Self.guest(
        space, "ip6=\(Namespace.guestIPv6)/64", "--net", "tap=\(space.tap),mac=02:00:00:00:00:07")
      let client = try space.connectICMPv6(to: address)
      for size in [0, 56, 1400, 4000] {  // the last one in fragments, both ways
        #expect(try client.ping([UInt8](repeating: 0x5a, count: size)), "\(size) bytes")
      }
      withExtendedLifetime(guest) {}
    }

    @Test func udpAndTCPEcho_withoutAnIPv4Address() throws {
      let space = try Namespace()
      let guest = try Self.guest(space, "ip6=\(Namespace.guestIPv6)/64", "--net", "tap=\(space.tap)")
      let udp = try space.connect(port: 7, udp: true, to: Namespace.guestIPv6)
      for size in [1, 64, 1400, 4000] {
        let text = String(repeating: "x", count: size)
        #expect(try udp.exchange(text, expecting: text), "UDP echo of \(size) bytes")
      }
      let tcp = try space.connect(port: 7, to: Namespace.guestIPv6)
      let long = String(repeating: "0123456789abcdef", count: 4096)
      #expect(try tcp.exchange(long, expecting: long), "TCP echo of 64 KiB")
      withExtendedLifetime(guest) {}
    }
  }
}
