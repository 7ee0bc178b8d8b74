import Foundation
import Harness
import Testing

extension Integration {
  /// The ways between the two hosts of a pair, and what their loss means.
  @Suite(
    "Paths", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct Paths {
    private let net: TwoHosts
    private let folder = TestFolder()
    private var key: String { folder.path("key") }
    private func control(_ host: Int) -> String { folder.path("control\(host)") }

    init() throws {
      net = try TwoHosts()
      try makeKey(key)
    }

    private func secondary(_ more: String...) throws -> Guest {
      let guest = try Guest(
        [
          "secondary", "--listen", "\(TwoHosts.address(.channel, 1)):7000", "--heartbeat",
          "\(TwoHosts.address(.beats, 1)):7000", "--key", key, "--net", "tap=tap0", "--control", control(1),
        ] + more, in: net.hosts[1])
      try guest.wait(for: "waiting for a primary", timeout: 10)
      return guest
    }

    private func primary(_ more: String...) throws -> Guest {
      try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate",
          "\(TwoHosts.address(.channel, 1)):7000", "--heartbeat", "\(TwoHosts.address(.beats, 1)):7000", "--key", key,
          "--control", control(0),
        ] + more, in: net.hosts[0])
    }

    /// Both sides in step, and a client with a connection.
    private func pair(_ primaryMore: String..., secondaryMore: String...) throws -> (Guest, Guest, Connection) {
      let second = try secondaryMore.isEmpty ? secondary() : secondary(secondaryMore[0], secondaryMore[1])
      let first = try primary()
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      return (first, second, try net.network.connect(port: 6379))
    }

    private func count(on client: Connection, _ range: ClosedRange<Int>, moment: Int = -1, at: () throws -> Void = {})
      throws
    {
      for number in range {
        try client.send("INCR n\r\n")
        if number == moment { try at() }
        let expected = Array(":\(number)\r\n".utf8)
        let reply = try client.receive(expected.count, timeout: 10_000)
        try #require(reply == expected, "INCR \(number) was answered '\(String(decoding: reply, as: UTF8.self))'")
      }
    }

    private func status(_ host: Int) throws -> String {
      try run(Environment.minivmm, ["status", "--control", control(host)]).output
    }

    // MARK: Forming

    /// With the channel alone its end would look like the primary's: nobody takes over then, and people hear why.
    @Test func beatsFiltered_nobodyCouldTakeOver_andTheCureIsTold() throws {
      try net.cut(.beats, of: 1)
      let second = try secondary()
      let first = try primary()
      try first.wait(for: "no sign of life by UDP as yet", timeout: 30)
      #expect(first.console.contains("--heartbeat") && !first.console.contains("now primary"))
      for (host, role) in [(0, "syncing"), (1, "joining")] {
        let text = try status(host)
        #expect(text.contains(role) && text.contains("beats never"), "\(text)")
      }
      // What was taken for the primary's death: the channel is reset, and its host lives.
      try net.hosts[0].inside("ss", ["-K", "dport", "=", "7000"])
      try first.wait(for: "pair: alone", timeout: 10)
      try first.wait(for: "pair: a secondary is at", times: 2, timeout: 10)
      #expect(!second.console.contains("takingOver"))
      try net.restore(.beats, of: 1)
      try first.wait(for: "pair: now primary", timeout: 20)
      try second.wait(for: "pair: now secondary", timeout: 10)
      let text = try status(0)
      #expect(text.contains("signs of life") && !text.contains("never"), "\(text)")
      let client = try net.network.connect(port: 6379)
      try count(on: client, 1...30, moment: 15) { first.signal(SIGKILL) }
    }

    /// A host that swallows what is sent to it, such as one that boots, must not keep the primary waiting for long.
    @Test func secondaryUnreachableForAWhile_isJoinedSoonAfter() throws {
      try net.cut(.channel, of: 1)
      let second = try secondary()
      let first = try primary()
      try first.wait(for: "onnection timed out", timeout: 20)
      #expect(staysTrue(for: 8) { !first.console.contains("now primary") })
      try net.restore(.channel, of: 1)
      // The kernel's own patience would be at 8 or 16 s a try by now.
      try first.wait(for: "pair: a secondary is at", timeout: 4)
      try second.wait(for: "pair: now secondary", timeout: 10)
    }

    /// A name that is not known as yet, of the channel or the beats: told once, and nothing goes on with one path.
    @Test(arguments: ["--replicate", "--heartbeat"]) func unknownName_isTold(option: String) throws {
      let second = try secondary()
      let first = try primary(option, "nowhere.invalid:7000")
      try first.wait(for: "cannot resolve nowhere.invalid:7000", timeout: 30)
      #expect(staysTrue(for: 3) { !first.console.contains("now syncing") })
      #expect(first.count(of: "cannot resolve") == 1 && second.isRunning)
    }

    // MARK: Cuts

    /// The channel alone swallows everything: the primary goes on alone, and the secondary hears that and does not serve.
    @Test func channelSilent_thePrimaryGoesOnAlone() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...40, moment: 20) { try net.cut(.channel, of: 1) }
      try first.wait(for: "pair: alone", timeout: 10)
      #expect(first.console.contains("channel silent for 5"), "\(first.console.suffix(300))")
      #expect(try second.waitForExit(timeout: 15) == 76)
      #expect(!second.console.contains("takingOver"), "two would serve")
      try count(on: client, 41...60)
    }

    /// The beats alone are swallowed: the pair goes on, and people hear that one way is left.
    @Test func beatsSilent_thePairGoesOn_andSaysSo() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...20, moment: 10) { try net.cut(.beats, of: 0) }
      try first.wait(for: "no sign of life by UDP for 5 s", timeout: 15)
      try second.wait(for: "no sign of life by UDP for 5 s", timeout: 15)
      #expect(!first.console.contains("pair: alone") && !second.console.contains("takingOver"))
      try count(on: client, 21...60, moment: 40) { first.signal(SIGKILL) }
    }

    /// The primary's host loses every cable: its clients go on with the survivor.
    @Test func primarysHostCutOff_theSecondaryTakesOver() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...40, moment: 20) {
        for way in TwoHosts.Way.allCases { try net.cut(way, of: 0) }
        try second.wait(for: "pair: now alone", timeout: 3)
      }
      #expect(second.console.contains("silent"), "\(second.console.suffix(300))")
      try first.wait(for: "pair: alone", timeout: 10)
      try count(on: client, 41...60)
    }

    /// What a pair does not survive, as documented: both ways cut between two hosts that live and serve.
    @Test func bothWaysCut_bothServe() throws {
      let (first, second, client) = try pair()
      try count(on: client, 1...10)
      for way in [TwoHosts.Way.channel, .beats] { try net.cut(way, of: 0) }
      try second.wait(for: "pair: now alone", timeout: 5)
      try first.wait(for: "pair: alone", timeout: 10)
      #expect(first.isRunning && second.isRunning)
    }

    /// A secondary that beats and reads nothing: it is given up after five seconds, and costs the guest no more than time.
    @Test func secondaryThatDoesNotRead_isGivenUp_andTheGuestGoesOn() throws {
      let (first, second, client) = try pair(secondaryMore: "--fault", "receivedSaid=delay:20000@5")
      try second.wait(for: "pair: fault", timeout: 20)
      let value = String(repeating: "x", count: 12_000)
      try count(on: client, 1...5)
      for number in 0..<400 {
        let request = "*3\r\n$3\r\nSET\r\n$2\r\nb\(number % 8)\r\n$\(value.count)\r\n\(value)\r\n"
        try #require(try client.exchange(request, expecting: "+OK\r\n", timeout: 15_000))
      }
      try first.wait(for: "was not confirmed within 5 s", timeout: 20)
      try count(on: client, 6...20)
      let memory = try String(contentsOfFile: "/proc/\(first.identifier)/status", encoding: .utf8)
      let line = try #require(memory.split(separator: "\n").first { $0.hasPrefix("VmHWM") })
      let peak = try #require(line.split(separator: " ").compactMap { Int($0) }.first)
      #expect(peak < (64 + 256 + 64) << 10, "\(line): the guest's, the queue's limit and some")
      #expect(!second.console.contains("takingOver"))
    }
  }
}
