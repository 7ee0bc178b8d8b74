import Foundation
import Harness
import Testing

extension Integration {
  /// Real clients against a guest's servers, over a tap and over the socket back end.
  @Suite("Clients", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"))
  struct Clients {
    static let lab = lab(memory: "64M")

    static func lab(memory: String) -> [String] {
      [
        "run", "--kernel", Environment.labGuest, "--memory", memory, "--cmdline",
        "service=kv,echo ip=\(Namespace.guest)/24 gw=\(Namespace.host)",
      ]
    }

    @Test(arguments: [1, 2, 4]) func redis_overATap(cpus: Int) throws {
      let space = try Namespace()
      let guest = try Guest(Self.lab + ["--net", "tap=\(space.tap)", "--cpus", "\(cpus)"], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "set", "k", "v"]) == "OK\n")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"]) == "v\n")
      let benchmark = try space.inside(
        "redis-benchmark", ["-h", Namespace.guest, "-c", "20", "-P", "4", "-n", "5000", "-t", "set,get", "--csv"],
        timeout: 60)
      #expect(benchmark.contains("\"GET\""))
    }

    @Test func udpAndTCPEcho_overATap() throws {
      let space = try Namespace()
      let guest = try Guest(Self.lab + ["--net", "tap=\(space.tap)"], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      let udp = try space.connect(port: 7, udp: true)
      for size in [1, 64, 1400] {
        let text = String(repeating: "x", count: size)
        #expect(try udp.exchange(text, expecting: text), "UDP echo of \(size) bytes")
      }
      let tcp = try space.connect(port: 7)
      let long = String(repeating: "0123456789abcdef", count: 4096)
      #expect(try tcp.exchange(long, expecting: long), "TCP echo of 64 KiB")
    }

    @Test func memcachedText_overTCP() throws {
      let space = try Namespace()
      let guest = try Guest(Self.lab + ["--net", "tap=\(space.tap)"], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      let client = try space.connect(port: 11211)
      #expect(try client.exchange("set a 5 0 3\r\nabc\r\n", expecting: "STORED\r\n"))
      #expect(try client.exchange("get a\r\n", expecting: "VALUE a 5 3\r\nabc\r\nEND\r\n"))
      #expect(try client.exchange("delete a\r\n", expecting: "DELETED\r\n"))
    }

    @Test func redis_overTheSocketBackend() throws {
      let space = try Namespace(taps: ["tap0"])
      let path = FileManager.default.temporaryDirectory.appending(path: "minivmm-socket-\(getpid())").path
      // A relay between a tap and the socket: frames behind their length, 4 bytes big-endian.
      let relay = Environment.root.appending(path: "Tests/Harness/relay.py").path
      let process = try Child(["ip", "netns", "exec", space.name, "python3", relay, space.tap, path])
      defer {
        process.signal(SIGTERM)
        process.wait()
      }
      try #require(waitUntil { FileManager.default.fileExists(atPath: path) })
      let guest = try Guest(Self.lab + ["--net", "socket=\(path)"], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "set", "k", "socket"]) == "OK\n")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"]) == "socket\n")
    }

    @Test func privileges_areDroppedAndTheGuestServes() throws {
      let space = try Namespace()
      let guest = try Guest(Self.lab + ["--net", "tap=\(space.tap)", "--user", "nobody"], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      let status = try String(contentsOfFile: "/proc/\(guest.identifier)/status", encoding: .utf8)
      #expect(status.contains("Uid:\t65534\t65534\t65534\t65534"))
      #expect(status.contains("CapEff:\t0000000000000000"))
      #expect(status.contains("NoNewPrivs:\t1"))
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "ping"]) == "PONG\n")
    }
  }
}
