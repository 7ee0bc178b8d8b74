import Foundation
import Harness
import Testing

extension Integration {
  /// Anybody on the guest's network can send segments in a client's name.
  @Suite(
    "Forged packets",
    .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct ForgedPackets {
    /// A client that counts on one connection to ARGV[2] from ARGV[1], and a forger beside it: once standard input has a line, after each number a
    /// segment with the client's addresses and ports, and numbers that are not the connection's.
    private static let client = """
      import random, socket, struct, sys, threading
      RST, ACK, SYN, FIN = 4, 16, 2, 1
      random.seed(7)
      client = socket.create_connection((sys.argv[2], 6379), timeout=20)
      source, target = [socket.inet_aton(name) for name in sys.argv[1:3]]
      ports = struct.pack("!HH", client.getsockname()[1], 6379)
      wire = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)

      def forge(flags):
          segment = ports + struct.pack("!IIBBHHH", random.getrandbits(32), random.getrandbits(32), 0x50, flags, 1000, 0, 0)
          data = source + target + struct.pack("!BBH", 0, 6, len(segment)) + segment
          total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
          total = (total & 0xFFFF) + (total >> 16)
          segment = segment[:16] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + segment[18:]
          wire.sendto(struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + source + target + segment, (sys.argv[2], 0))

      begun = threading.Event()
      threading.Thread(target=lambda: sys.stdin.readline() and begun.set(), daemon=True).start()
      reader, number = client.makefile("rb"), 0
      while True:
          number += 1
          client.sendall(b"INCR n\\r\\n")
          answer = reader.readline()
          if answer != b":%d\\r\\n" % number:
              sys.exit("wrong: %r for %d" % (answer, number))
          if number % 10 == 0:
              print("counted %d;" % number, flush=True)
          if begun.is_set():
              forge([RST, RST | ACK, ACK, SYN, SYN | ACK, FIN | ACK][number % 6])
      """

    /// The guests do not believe such segments, so neither do the comparator and the mapper: output that was equal stays equal, and
    /// the connection goes on after its primary's death, be they sent before that or after.
    @Test(arguments: ["colo", "colo++"], [true, false]) func clientGoesOn(mode: String, isPair: Bool) throws {
      let folder = TestFolder()
      let space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      let (key, control) = (folder.path("key"), folder.path("control"))
      try makeKey(key)
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1"], in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv isn=clock ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate", "127.0.0.1:7000",
          "--key",
          key, "--mode", mode, "--epoch-max", "10s", "--control", control,
        ], in: space)
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      let client = try Guest(["-c", Self.client, Namespace.host, Namespace.guest], in: space, binary: "python3")
      try client.wait(for: "counted 50;", timeout: 30)
      if isPair {
        let before = try Self.checkpoints(control)
        client.type("forge")
        try client.wait(for: "counted 200;", timeout: 30)
        #expect(try Self.checkpoints(control) == before)
      }
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
      if !isPair { client.type("forge") }
      let seen = 10 * client.count(of: "counted ")
      try client.wait(for: "counted \(seen + 200);", timeout: 30)
      #expect(client.isRunning && !client.console.contains("wrong"), "\(client.console.suffix(300))")
    }

    /// How many checkpoints there have been: each difference of output is the cause of one.
    private static func checkpoints(_ control: String) throws -> Int {
      let outcome = try run(Environment.minivmm, ["status", "--control", control, "--json"])
      let status = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8)) as? [String: Any]
      let pair = try #require(status?["pair"] as? [String: Any], "\(outcome.errors)")
      return try #require(pair["checkpoints"] as? [String: Int], "\(outcome.output)").values.reduce(0, +)
    }
  }
}
