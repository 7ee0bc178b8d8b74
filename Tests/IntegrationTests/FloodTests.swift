import Foundation
import Harness
import Testing

extension Integration {
  @Suite(
    "Flood", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3)))
  struct Flood {
    /// Datagrams for a guest's address, as fast as they can be sent, for ARGV[2] seconds.
    private static let flood = """
      import socket, sys, time
      out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
      out.connect((sys.argv[1], 9))
      data, end, sent = bytes(50000), time.monotonic() + float(sys.argv[2]), 0
      print("flooding", flush=True)
      while time.monotonic() < end:
          for _ in range(100):
              try:
                  out.send(data)
                  sent += 1
              except OSError:
                  pass
      print("sent %d MB" % (sent * 50000 // 1000000), flush=True)
      """

    /// Anybody can send the guest more than its secondary can keep while it loads a checkpoint: the wire drops it, and protection
    /// goes on.
    @Test(arguments: ["remus", "colo"]) func floodOfTheGuestsAddress_endsNoProtection(mode: String) throws {
      let folder = TestFolder()
      let space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      // Few and large frames: more than 64 MiB come while a checkpoint is loaded, however slow this host is.
      for link in ["tap0", "tap1", "br0"] { try space.inside("ip", ["link", "set", link, "mtu", "60000"]) }
      let key = folder.path("key")
      try makeKey(key)
      let second = try Guest(
        [
          "secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1", "--fault",
          "rolledBack=delay:3000@20",
        ], in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate", "127.0.0.1:7000", "--key", key,
          "--mode", mode,
        ], in: space)
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      let client = try space.connect(port: 6379)
      #expect(try client.exchange("INCR n\r\n", expecting: ":1\r\n"))
      try second.wait(for: "pair: fault", timeout: 20)
      let flood = try Guest(["-c", Self.flood, Namespace.guest, "6"], in: space, binary: "python3")
      try flood.wait(for: "sent", timeout: 30)
      #expect(second.isRunning && first.count(of: "pair: alone") == 0, "\(first.console.suffix(300))")
      for number in 2...20 {
        #expect(try client.exchange("INCR n\r\n", expecting: ":\(number)\r\n", timeout: 10_000))
      }
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 20)
      #expect(try client.exchange("INCR n\r\n", expecting: ":21\r\n", timeout: 10_000))
    }
  }
}
