import Foundation
import Harness
import Testing

extension Integration {
  /// A side that stands still for a while, and what comes for it is lost: whenever packets flow again, one side serves.
  @Suite(
    "Frozen sides", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3)))
  struct FrozenSides {
    private let net: TwoHosts
    private let folder = TestFolder()
    private var key: String { folder.path("key") }
    private func control(_ host: Int) -> String { folder.path("control\(host)") }
    static let both: [TwoHosts.Way] = [.channel, .beats]

    init() throws {
      net = try TwoHosts()
      try makeKey(key)
    }

    private func secondary(on host: Int = 1, _ more: [String] = []) throws -> Guest {
      let guest = try Guest(
        [
          "secondary", "--listen", "\(TwoHosts.address(.channel, host)):7000", "--heartbeat",
          "\(TwoHosts.address(.beats, host)):7000", "--key", key, "--net", "tap=tap0", "--control", control(host),
        ] + more, in: net.hosts[host])
      try guest.wait(for: "waiting for a primary", timeout: 10)
      return guest
    }

    private func primary(_ more: [String] = [], card: String = "tap=tap0", control number: Int = 0) throws -> Guest {
      try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", card, "--replicate",
          "\(TwoHosts.address(.channel, 1)):7000", "--heartbeat", "\(TwoHosts.address(.beats, 1)):7000", "--key", key,
          "--control", control(number),
        ] + more, in: net.hosts[0])
    }

    /// Both sides in step, and a client with a connection.
    private func pair(_ more: [String] = [], secondary options: [String] = []) throws -> (Guest, Guest, Connection) {
      let second = try secondary(options)
      let first = try primary(more)
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      return (first, second, try net.network.connect(port: 6379))
    }

    /// Counts on: a count that is missing is an acknowledged write that was lost.
    private func count(on client: Connection, _ range: ClosedRange<Int>) throws {
      for number in range {
        try client.send("INCR n\r\n")
        let expected = Array(":\(number)\r\n".utf8)
        let reply = try client.receive(expected.count, timeout: 10_000)
        try #require(reply == expected, "INCR \(number) was answered '\(String(decoding: reply, as: UTF8.self))'")
      }
    }

    private func freeze(_ guest: Guest, of host: Int, without ways: [TwoHosts.Way], milliseconds: UInt32) throws {
      for way in ways { try net.cut(way, of: host) }
      guest.signal(SIGSTOP)
      usleep(milliseconds * 1000)
      for way in ways { try net.restore(way, of: host) }
      guest.signal(SIGCONT)
    }

    private func expectReplaced(_ first: Guest, by second: Guest) throws {
      #expect(try first.waitForExit(timeout: 15) == 0, "the old primary ends")
      #expect(first.console.contains("another has taken over") && !first.console.contains("pair: alone"))
      #expect(second.isRunning)
    }

    /// The survivor says its term for as long as it lives: whatever of it is lost, the old primary hears it, and lets nothing out
    /// before.
    @Test(arguments: [[TwoHosts.Way.channel, .beats], [.channel], [.beats]], ["remus", "colo"])
    func primaryFrozen_whatCameForItIsLost_oneServes(ways: [TwoHosts.Way], mode: String) throws {
      let (first, second, client) = try pair(["--mode", mode])
      try count(on: client, 1...20)
      // In this order: the survivor's term must not lie in the sockets of a side that stands still.
      for way in ways { try net.cut(way, of: 0) }
      first.signal(SIGSTOP)
      try second.wait(for: "pair: now alone", timeout: 5)
      try count(on: client, 21...40)
      usleep(2_000_000)
      for way in ways { try net.restore(way, of: 0) }
      first.signal(SIGCONT)
      try expectReplaced(first, by: second)
      try count(on: client, 41...60)
    }

    /// Also when packets are lost for longer than the old primary would wait for its secondary.
    @Test func primaryFrozen_packetsLostAfterwardsToo_itServesNobodyMeanwhile() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...20)
      // In this order: the survivor's term must not lie in the sockets of a side that stands still.
      for way in Self.both { try net.cut(way, of: 0) }
      first.signal(SIGSTOP)
      try second.wait(for: "pair: now alone", timeout: 5)
      try count(on: client, 21...40)
      usleep(1_500_000)
      first.signal(SIGCONT)
      try first.wait(for: "nothing leaves until one answers", timeout: 10)
      #expect(try run(Environment.minivmm, ["status", "--control", control(0)]).output.contains("quarantined"))
      #expect(staysTrue(for: 4) { first.isRunning && !first.console.contains("pair: alone") })
      try count(on: client, 41...60)
      for way in Self.both { try net.restore(way, of: 0) }
      try expectReplaced(first, by: second)
      try count(on: client, 61...80)
    }

    /// For less than anybody notices, or about as long as it takes to: the pair goes on, or one side of it.
    @Test(arguments: [20, 70, 120] as [UInt32]) func primaryFrozen_forAMoment_oneServes(milliseconds: UInt32) throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...20)
      try freeze(first, of: 0, without: Self.both, milliseconds: milliseconds)
      try count(on: client, 21...40)
      usleep(2_000_000)
      let hasTakenOver = second.console.contains("now alone")
      #expect(first.isRunning != hasTakenOver)
      try count(on: client, 41...60)
    }

    /// The secondary may not take over after it was given up: it ends, and the primary finds another.
    @Test func secondaryFrozen_whatCameForItIsLost_thePrimaryServes() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...20)
      try freeze(second, of: 1, without: Self.both, milliseconds: 2000)
      #expect(try second.waitForExit(timeout: 15) == 76)
      #expect(!second.console.contains("takingOver"))
      try count(on: client, 21...40)
      let third = try secondary()
      try third.wait(for: "pair: now secondary", timeout: 20)
      first.signal(SIGKILL)
      try count(on: client, 41...60)
    }

    /// Before the first checkpoint nobody else can serve.
    @Test func primaryFrozen_whileItCopies_itGoesOnAndIsProtectedLater() throws {
      let second = try secondary()
      let first = try primary(["--fault", "firstCopy=stop@1"])
      try first.wait(for: "pair: fault", timeout: 20)
      for way in Self.both { try net.cut(way, of: 0) }
      usleep(3_000_000)
      for way in Self.both { try net.restore(way, of: 0) }
      first.signal(SIGCONT)
      try first.wait(for: "pair: now primary", timeout: 20)
      #expect(!second.console.contains("takingOver"))
      try count(on: try net.network.connect(port: 6379), 1...20)
    }

    /// The secondary is asked to take over while the primary stands still.
    @Test func primaryFrozen_whileItsSecondaryIsAskedToTakeOver_oneServes() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...20)
      // In this order: the survivor's term must not lie in the sockets of a side that stands still.
      for way in Self.both { try net.cut(way, of: 0) }
      first.signal(SIGSTOP)
      _ = try run(Environment.minivmm, ["failover", "--control", control(1)])
      try second.wait(for: "pair: now alone", timeout: 5)
      try count(on: client, 21...40)
      for way in Self.both { try net.restore(way, of: 0) }
      first.signal(SIGCONT)
      try expectReplaced(first, by: second)
      try count(on: client, 41...60)
    }

    /// A survivor answers the old primary behind many who are no peers, and an old primary that was started anew; and it gets a
    /// secondary of its own.
    @Test func primaryStartedAnew_besideStrangers_isTurnedAway_andTheSurvivorIsProtected() throws {
      let next = "\(TwoHosts.address(.channel, 0)):7000"
      let (first, second, client) = try pair(
        secondary: ["--replicate", next, "--replicate-heartbeat", "\(TwoHosts.address(.beats, 0)):7000"])
      try count(on: client, 1...20)
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 5)
      let program = Environment.root.appending(path: "Tests/Harness/callers.py").path
      let callers = try Guest(
        [program, TwoHosts.address(.channel, 1), "7000", "100"], in: net.hosts[0], binary: "python3")
      try callers.wait(for: "calling", timeout: 10)
      let again = try primary()
      #expect(try again.waitForExit(timeout: 20) == 0)
      #expect(again.console.contains("another has taken over"))
      try count(on: client, 21...40)
      let third = try secondary(on: 0)
      try third.wait(for: "pair: now secondary", timeout: 20)
      second.signal(SIGKILL)
      try third.wait(for: "pair: now alone", timeout: 5)
      try count(on: client, 41...60)
    }

    /// A primary that is started anew while its secondary takes over waits for that, however long it takes.
    @Test func primaryStartedAnew_whileTheTakeoverLasts_isTurnedAway() throws {
      let (first, second, client) = try pair(secondary: ["--fault", "takeoverDisks=delay:4000"])
      try count(on: client, 1...20)
      first.signal(SIGKILL)
      _ = try first.waitForExit()
      let again = try primary()
      #expect(try again.waitForExit(timeout: 20) == 0)
      #expect(!again.console.contains("now alone"), "\(again.console)")
      try second.wait(for: "pair: now alone", timeout: 10)
      try count(on: client, 21...40)
    }

    /// Started twice, a guest is served once, however long the second one asks.
    @Test func primaryStartedTwice_servesNobody() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...20)
      let neighbour = try net.network.inside("ip", ["neighbour", "show", Namespace.guest])
      let address = try #require(neighbour.split(separator: " ").first { $0.count == 17 }, "\(neighbour)")
      for words in ["tuntap add tap1 mode tap", "link set tap1 up"] {
        try net.hosts[0].inside("ip", words.split(separator: " ").map(String.init))
      }
      let program = Environment.root.appending(path: "Tests/Harness/capture.py").path
      let capture = try Guest([program, "tap1"], in: net.hosts[0], binary: "python3")
      try capture.wait(for: "capturing", timeout: 10)
      let again = try primary(card: "tap=tap1,mac=\(String(address))", control: 2)
      try again.wait(for: "it follows another primary", timeout: 10)
      // Its guest announces its address as soon as anything may leave.
      #expect(staysTrue(for: 5) { again.isRunning && !capture.console.contains(Namespace.guest) }, "\(capture.console)")
      try count(on: client, 21...40)
      #expect(first.isRunning && second.isRunning)
    }

    /// Both ways cut between two hosts that live: both serve, as documented, until they can speak again.
    @Test func bothWaysCut_andMended_oneServes() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...10)
      for way in Self.both { try net.cut(way, of: 0) }
      try second.wait(for: "pair: now alone", timeout: 5)
      try first.wait(for: "pair: alone", timeout: 10)
      usleep(2_000_000)
      for way in Self.both { try net.restore(way, of: 0) }
      #expect(try first.waitForExit(timeout: 15) == 0)
      #expect(second.isRunning)
    }
  }
}
