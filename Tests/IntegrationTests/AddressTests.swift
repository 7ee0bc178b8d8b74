import Foundation
import Harness
import Testing

extension Integration {
  /// Every way to name where the two sides of a pair meet, on hosts with several addresses.
  @Suite(
    "Addresses of a pair",
    .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3)))
  struct Addresses {
    private let net: TwoHosts
    private let folder = TestFolder()
    private var key: String { folder.path("key") }

    init() throws {
      net = try TwoHosts()
      try makeKey(key)
      for way in [TwoHosts.Way.channel, .beats] {
        for host in 0...1 {
          try net.hosts[host].inside(
            "ip", ["address", "add", "fd00:\(way.rawValue)::\(host + 1)/64", "dev", "\(way)", "nodad"])
        }
        // Not those that an answer is sent from by itself.
        try net.hosts[1].inside("ip", ["address", "add", "10.\(way.rawValue).1.22/24", "dev", "\(way)"])
        try net.hosts[1].inside("ip", ["address", "add", "fd00:\(way.rawValue)::22/64", "dev", "\(way)", "nodad"])
      }
    }

    struct Row: Sendable, CustomTestStringConvertible {
      let listen: String
      let replicate: String
      var heard: String?
      var heartbeat: String?
      var testDescription: String { "\(listen) \(heard ?? "") called \(replicate) \(heartbeat ?? "")" }
    }

    static let rows = [
      Row(listen: "0.0.0.0:7000", replicate: "10.1.1.22:7000"),
      Row(listen: ":7000", replicate: "10.1.1.2:7000"),
      Row(listen: ":7000", replicate: "10.1.1.22:7000"),
      Row(listen: ":7000", replicate: "[fd00:1::22]:7000"),
      Row(listen: "[::]:7000", replicate: "[fd00:1::22]:7000"),
      Row(listen: "[fd00:1::22]:7000", replicate: "[fd00:1::22]:7000"),
      Row(listen: "10.1.1.2:7000", replicate: "10.1.1.2:7000", heard: "0.0.0.0:7001", heartbeat: "10.2.1.22:7001"),
      Row(listen: "[fd00:1::2]:7000", replicate: "[fd00:1::2]:7000", heard: ":7001", heartbeat: "10.2.1.22:7001"),
      Row(listen: ":7000", replicate: "10.1.1.22:7000", heard: "[::]:7001", heartbeat: "[fd00:2::22]:7001"),
    ]

    @Test(arguments: rows) func pairForms_andSurvivesItsPrimary(row: Row) throws {
      let second = try Guest(
        ["secondary", "--listen", row.listen, "--key", key, "--net", "tap=tap0"]
          + (row.heard.map { ["--heartbeat", $0] } ?? []), in: net.hosts[1])
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate", row.replicate, "--key", key,
        ] + (row.heartbeat.map { ["--heartbeat", $0] } ?? []), in: net.hosts[0])
      try first.wait(for: "pair: now primary", timeout: 20)
      try second.wait(for: "pair: now secondary", timeout: 20)
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
    }

    /// Answers each question for an address with ARGV[1].
    private static let nameService = """
      import socket, sys
      port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
      port.bind(("127.0.0.1", 53))
      print("answering", flush=True)
      while True:
          query, caller = port.recvfrom(512)
          end = 12
          while query[end]:
              end += query[end] + 1
          found = query[end + 1:end + 3] == b"\\0\\1"
          answer = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton(sys.argv[1])
          head = query[:2] + b"\\x81\\x80\\0\\1\\0" + bytes([found]) + b"\\0\\0\\0\\0" + query[12:end + 5]
          port.sendto(head + (answer if found else b""), caller)
      """

    /// By a name that only the name service knows: what the C library does for that is allowed too.
    @Test func nameFromTheNameService_isFound() throws {
      let settings = URL(filePath: "/etc/netns/\(net.hosts[0].name)")
      try FileManager.default.createDirectory(at: settings, withIntermediateDirectories: true)
      defer { try? FileManager.default.removeItem(at: settings) }
      try "nameserver 127.0.0.1\n".write(
        to: settings.appending(path: "resolv.conf"), atomically: false, encoding: .utf8)
      let service = try Guest(["-c", Self.nameService, "10.1.1.2"], in: net.hosts[0], binary: "python3")
      try service.wait(for: "answering", timeout: 10)
      let second = try Guest(
        ["secondary", "--listen", "10.1.1.2:7000", "--key", key, "--net", "tap=tap0"], in: net.hosts[1])
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate", "other.test:7000", "--key", key,
        ], in: net.hosts[0])
      try first.wait(for: "pair: now primary", timeout: 20)
      #expect(first.isRunning)
      withExtendedLifetime((service, second)) {}
    }

    /// Nobody listens: what was called, and what to do.
    @Test func refusedConnections_areTold() throws {
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate",
          "10.1.1.2:7000", "--key", key,
        ], in: net.hosts[0])
      try first.wait(for: "nobody listens at 10.1.1.2:7000", timeout: 20)
      #expect(first.console.contains("start `minivmm secondary` there, or correct --replicate"))
      #expect(staysTrue(for: 2) { first.count(of: "nobody listens") == 1 })
    }
  }
}
