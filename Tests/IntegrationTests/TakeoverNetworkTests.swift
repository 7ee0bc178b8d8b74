import Foundation
import Harness
import Testing

extension Integration {
  /// What the network sees of a takeover, besides the guest's clients.
  @Suite(
    "Network at a takeover",
    .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct TakeoverNetwork {
    private let space: Namespace
    private let folder = TestFolder()
    private var key: String { folder.path("key") }

    init() throws {
      space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      try makeKey(key)
    }

    private func pair(_ mode: String, _ cmdline: String) throws -> (Guest, Guest) {
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1"], in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", cmdline, "--net",
          "tap=tap0,mac=52:54:00:00:00:77", "--replicate", "127.0.0.1:7000", "--key", key, "--mode", mode,
        ], in: space)
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      return (first, second)
    }

    private func program(_ name: String, _ arguments: String...) throws -> Guest {
      let path = Environment.root.appending(path: "Tests/Harness/\(name)").path
      return try Guest([path] + arguments, in: space, binary: "python3")
    }

    /// Neighbours learn at once where the guest is, however silent it was before.
    @Test(arguments: ["remus", "colo"]) func takeover_announcesEveryAddress(mode: String) throws {
      let (first, second) = try pair(
        mode, "service=kv ip=\(Namespace.guest)/24 ip6=\(Namespace.guestIPv6)/64")
      for address in [Namespace.guest, Namespace.guestIPv6] {
        let client = try space.connect(port: 6379, to: address)
        #expect(try client.exchange("PING\r\n", expecting: "+PONG\r\n"))
      }
      // What was said lately is not what is known of it.
      sleep(1)
      let capture = try program("capture.py", "br0")
      try capture.wait(for: "capturing", timeout: 10)
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
      for line in ["rarp -", "arp \(Namespace.guest)", "neighbour \(Namespace.guestIPv6)"] {
        try capture.wait(for: "\(line) 52:54:00:00:00:77", timeout: 5)
      }
    }

    /// A guest with a link address of its own is reached at that: its client waits for no neighbour cache.
    @Test(arguments: ["remus", "colo"]) func takeover_announcesTheGuestsOwnLinkAddress(mode: String) throws {
      let (first, second) = try pair(
        mode, "service=kv mac=0x020000000099 ip=\(Namespace.guest)/24 ip6=\(Namespace.guestIPv6)/64")
      for address in [Namespace.guest, Namespace.guestIPv6] {
        let client = try space.connect(port: 6379, to: address)
        #expect(try client.exchange("PING\r\n", expecting: "+PONG\r\n"))
      }
      sleep(1)
      let capture = try program("capture.py", "br0")
      try capture.wait(for: "capturing", timeout: 10)
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
      for line in ["rarp -", "arp \(Namespace.guest)", "neighbour \(Namespace.guestIPv6)"] {
        try capture.wait(for: "\(line) 02:00:00:00:00:99", timeout: 5)
      }
      #expect(!capture.console.contains("arp \(Namespace.guest) 52:54"))
      let client = try space.connect(port: 6379)
      #expect(try client.exchange("PING\r\n", expecting: "+PONG\r\n"))
    }

    /// A datagram for memcached's port of the guest, as a bridge hands it to a tap; each line of standard input is a command.
    private static let inject = """
      import socket, struct, sys
      out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
      out.bind((sys.argv[1], 0))
      print("injecting", flush=True)
      for line in sys.stdin:
          data = bytes(8) + line.strip().encode() + b"\\r\\nvalue\\r\\n"
          data = b"\\0\\1\\0\\0\\0\\1\\0\\0" + data[8:]
          head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(data), 1, 0, 64, 17, 0, socket.inet_aton(sys.argv[2]),
                             socket.inet_aton(sys.argv[3]))
          total = sum(struct.unpack("!10H", head))
          total = (total & 0xFFFF) + (total >> 16)
          head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
          out.send(bytes.fromhex("525400000077") + bytes.fromhex("525400000001") + b"\\x08\\x00" + head +
                   struct.pack("!HHHH", 4000, 11211, 8 + len(data), 0) + data)
          print("sent", flush=True)
      """

    /// A bridge floods to every tap what is for a guest that it has lost sight of, and a secondary's tap is one of them.
    @Test(arguments: ["remus", "colo", "colo++"])
    func whatTheSecondarysTapHasGot_isGivenOnlyFromThePrimarysLastWordOn(mode: String) throws {
      let (first, second) = try pair(mode, "service=kv ip=\(Namespace.guest)/24")
      let injector = try Guest(
        ["-c", Self.inject, "tap1", Namespace.host, Namespace.guest], in: space, binary: "python3")
      try injector.wait(for: "injecting", timeout: 10)
      injector.type("set early 0 0 5")
      try injector.wait(for: "sent", timeout: 5)
      // Answered only once the secondary has heard of it: the primary has spoken since.
      let before = try space.connect(port: 11211)
      #expect(try before.exchange("set other 0 0 1\r\nx\r\n", expecting: "STORED\r\n"))
      first.signal(SIGSTOP)
      var count = 0
      while second.count(of: "pair: now takingOver") == 0, count < 800 {
        injector.type("set late\(count) 0 0 5")
        count += 1
        try injector.wait(for: "sent", times: count + 1, timeout: 5)
      }
      try second.wait(for: "pair: now alone", timeout: 10)
      // In the middle of the silence of 60 ms or more: after the last word, and long before the survivor read its tap.
      let late = "late\(count / 2)"
      let client = try space.connect(port: 11211)
      #expect(try client.exchange("get \(late)\r\n", expecting: "VALUE \(late) 0 5\r\nvalue\r\nEND\r\n"))
      #expect(try client.exchange("get early\r\n", expecting: "END\r\n"))
    }

    /// A connection that the guest has opened is one like any other.
    @Test(arguments: ["remus", "colo", "colo++"], [true, false])
    func connectionOpenedByTheGuest_goesOn(mode: String, isOld: Bool) throws {
      let cmdline = "service=echo,dial dial=\(Namespace.host):9000 ip=\(Namespace.guest)/24"
      // Opened before the pair is formed, or between two checkpoints.
      var server = isOld ? try program("server.py", Namespace.host, "9000") : nil
      let (first, second) = try pair(mode, cmdline)
      if server == nil { server = try program("server.py", Namespace.host, "9000") }
      let client = try #require(server)
      try client.wait(for: "connected \(Namespace.guest)", timeout: 10)
      try client.wait(for: "exchange 20;", timeout: 20)
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
      let seen = client.count(of: "exchange ")
      try client.wait(for: "exchange \(seen + 50);", timeout: 20)
      #expect(!client.console.contains("changed") && !client.console.contains("closed"))
    }
  }
}
