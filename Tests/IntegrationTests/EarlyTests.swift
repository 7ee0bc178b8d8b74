import Foundation
import Harness
import Testing

extension Integration {
  /// A primary in colo++ dies between telling its secondary of a reply and letting it out.
  @Suite(
    "Output told early",
    .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct EarlyOutput {
    private let space: Namespace
    private let folder = TestFolder()

    init() throws {
      space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      try makeKey(folder.path("key"))
    }

    /// - Parameter other: a fault of the secondary's.
    private func pair(_ fault: String, _ other: String...) throws -> (first: Guest, second: Guest) {
      let second = try Guest(
        [
          "secondary", "--listen", "127.0.0.1:7000", "--key", folder.path("key"), "--net", "tap=tap1", "--control",
          folder.path("second"),
        ] + other.flatMap { ["--fault", $0] }, in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate", "127.0.0.1:7000", "--key",
          folder.path("key"), "--mode", "colo++", "--epoch-max", "500ms", "--control", folder.path("first"), "--fault",
          fault,
        ], in: space)
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      return (first, second)
    }

    private func number(_ object: String, _ name: String, of control: String) throws -> Int {
      let outcome = try run(Environment.minivmm, ["status", "--control", folder.path(control), "--json"])
      let status = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8)) as? [String: Any]
      let pair = try #require(status?["pair"] as? [String: Any], "\(outcome.errors)")
      return (pair[object] as? [String: Any])?[name] as? Int ?? 0
    }

    /// The lab guest's `debug` marks a reply that is another in each guest. The survivor's differs from what its client may have
    /// read: that connection is over, and not a byte of the survivor's own is seen on it.
    @Test func survivorThatSaysSomethingElse_resetsTheConnection() throws {
      let (first, second) = try pair("toldEarly=kill@2", "loaded=delay:3000@8")
      let client = try space.connect(port: 6379)
      try client.send("debug\r\n")
      while try client.receive(1) != [10] {}
      // While the primary lives it goes by what it has said.
      #expect(try waitUntil(seconds: 10) { try number("held", "contradicted", of: "first") == 1 })
      #expect(try client.exchange("ping\r\n", expecting: "+PONG\r\n"))
      // The secondary's guest stands still: or its difference would bring about a checkpoint, with the primary's reply in it, while
      // the primary dies.
      try second.wait(for: "fault: delay", timeout: 20)
      try client.send("debug\r\n")
      #expect(throws: HarnessError.self) { try client.receive(1, timeout: 10_000) }
      #expect(first.console.contains("fault: kill"))
      try second.wait(for: "pair: now alone", timeout: 10)
      #expect(try number("survivor", "reset", of: "second") == 1)
      let other = try space.connect(port: 6379)
      #expect(try other.exchange("set k v\r\nget k\r\n", expecting: "+OK\r\n$1\r\nv\r\n"))
    }

    /// Where hardly any reply may leave early, none is looked at, and it is `colo`; a client that reads again finds that they do.
    @Test func clientsThatOnlyWrite_endTheSearch_andReadersBeginItAgain() throws {
      let (first, second) = try pair("toldEarly=delay:0@1000000")
      let client = try space.connect(port: 6379)
      #expect(try client.exchange("set k v\r\n", expecting: "+OK\r\n"))
      let unsought = try waitUntil(seconds: 30) {
        _ = try space.inside("redis-benchmark", ["-h", Namespace.guest, "-t", "set", "-c", "20", "-n", "4000", "-q"])
        return try number("notEarly", "unsought", of: "first") > 0
      }
      #expect(unsought)
      let before = try number("held", "early", of: "first")
      let found = try waitUntil(seconds: 60) {
        #expect(try client.exchange("get k\r\n", expecting: "$1\r\nv\r\n"))
        return try number("held", "early", of: "first") > before
      }
      #expect(found && first.console.contains("pair: now primary") && !second.console.contains("pair: now alone"))
    }

    @Test func survivorThatSaysTheSame_goesOn() throws {
      let (first, second) = try pair("toldEarly=kill@5")
      let client = try space.connect(port: 6379)
      #expect(try client.exchange("set k value\r\n", expecting: "+OK\r\n"))
      for _ in 0..<1000 where second.count(of: "pair: now alone") == 0 {
        guard try client.exchange("get k\r\n", expecting: "$5\r\nvalue\r\n") else { return #expect(Bool(false)) }
        usleep(5000)
      }
      #expect(second.count(of: "pair: now alone") == 1 && first.console.contains("fault: kill"))
      for _ in 0..<20 { #expect(try client.exchange("get k\r\n", expecting: "$5\r\nvalue\r\n")) }
      #expect(try number("survivor", "reset", of: "second") == 0)
    }
  }
}
