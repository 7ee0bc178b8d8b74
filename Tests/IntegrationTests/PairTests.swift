import Foundation
import Harness
import Testing

extension Integration {
  /// A protected guest, real clients on connections opened before the kill, and a real SIGKILL.
  @Suite(
    "Pairs", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct Pairs {
    private let space: Namespace
    private let folder = TestFolder()
    private var key: String { folder.path("key") }

    init() throws {
      space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      try makeKey(key)
    }

    private func secondary(_ tap: String, port: Int = 7000, key: String? = nil, _ more: String...) throws -> Guest {
      let guest = try Guest(
        ["secondary", "--listen", "127.0.0.1:\(port)", "--key", key ?? self.key, "--net", "tap=\(tap)"] + more,
        in: space)
      try guest.wait(for: "waiting for a primary", timeout: 10)
      return guest
    }

    private func primary(_ mode: String) throws -> Guest {
      try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24 ip6=\(Namespace.guestIPv6)/64", "--net", "tap=tap0", "--replicate",
          "127.0.0.1:7000", "--key", key,
          "--mode", mode,
        ], in: space)
    }

    /// Counts up on one connection, one request at a time: every reply must be the next number. Calls `at` between the
    /// sending of request `moment` and its reply.
    private func count(
      on client: Connection, from first: Int, to last: Int, moment: Int = -1, at: () -> Void = {}
    ) throws {
      for number in first...last {
        try client.send("INCR n\r\n")
        if number == moment { at() }
        let expected = ":\(number)\r\n"
        let reply = try client.receive(expected.utf8.count, timeout: 10_000)
        guard reply == Array(expected.utf8) else {
          Issue.record("INCR \(number) was answered '\(String(decoding: reply, as: UTF8.self))'")
          return
        }
      }
    }

    @Test(arguments: ["remus", "colo", "colo++"], [1, 2]) func primaryKilled_theClientGoesOn(mode: String, round: Int)
      throws
    {
      let second = try secondary("tap1")
      let first = try primary(mode)
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      let client = try space.connect(port: 6379)
      let moment = Int.random(in: 5...30)
      try count(on: client, from: 1, to: 60, moment: moment) { first.signal(SIGKILL) }
      try second.wait(for: "pair: now alone", timeout: 10)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "n"]) == "60\n", "killed at \(moment)")
    }

    @Test(arguments: ["remus", "colo"]) func primaryKilled_clientsOverIPv6GoOn(mode: String) throws {
      let second = try secondary("tap1")
      let first = try primary(mode)
      try first.wait(for: "pair: now primary", timeout: 30)
      let client = try space.connect(port: 6379, to: Namespace.guestIPv6)
      try count(on: client, from: 1, to: 40, moment: 15) { first.signal(SIGKILL) }
      try second.wait(for: "pair: now alone", timeout: 10)
      try count(on: try space.connect(port: 6379, to: Namespace.guestIPv6), from: 41, to: 50)
    }

    /// Who has taken over is protected in turn: connections begun with either, numbers mapped or not, go on through both.
    @Test(arguments: ["remus", "colo", "colo++"]) func survivorKilled_itsOwnSecondaryGoesOn(mode: String) throws {
      let second = try secondary("tap1", "--replicate", "127.0.0.1:7002")
      let first = try primary(mode)
      try first.wait(for: "pair: now primary", timeout: 30)
      let client = try space.connect(port: 6379)
      try count(on: client, from: 1, to: 30, moment: 10) { first.signal(SIGKILL) }
      try second.wait(for: "pair: now alone", timeout: 10)
      let later = try space.connect(port: 6379)
      try count(on: later, from: 31, to: 40)
      let third = try secondary("tap0", port: 7002)
      try second.wait(for: "pair: now primary", timeout: 30)
      try count(on: client, from: 41, to: 70, moment: 60) { second.signal(SIGKILL) }
      try third.wait(for: "pair: now alone", timeout: 10)
      try count(on: later, from: 71, to: 80)
      try count(on: client, from: 81, to: 90)
    }

    @Test func secondaryKilled_thePrimaryGoesOn_andIsProtectedAgain() throws {
      let first = try primary("colo")
      try first.wait(for: "lab: ready", timeout: 20)
      let client = try space.connect(port: 6379)
      try count(on: client, from: 1, to: 5)
      do {
        let second = try secondary("tap1")
        try first.wait(for: "pair: now primary", timeout: 30)
        try count(on: client, from: 6, to: 40, moment: 20) { second.signal(SIGKILL) }
        try first.wait(for: "pair: alone", timeout: 10)
      }
      let third = try secondary("tap1")
      try third.wait(for: "pair: now secondary", timeout: 30)
      try count(on: client, from: 41, to: 80, moment: 60) { first.signal(SIGKILL) }
      try third.wait(for: "pair: now alone", timeout: 10)
      try count(on: client, from: 81, to: 90)
    }

    /// A primary that was stopped for longer than its secondary waits has been replaced, and must know it.
    @Test func primaryStopped_isReplacedAndFenced() throws {
      let second = try secondary("tap1")
      let first = try primary("colo")
      try first.wait(for: "pair: now primary", timeout: 30)
      try second.wait(for: "pair: now secondary", timeout: 30)
      let client = try space.connect(port: 6379)
      try count(on: client, from: 1, to: 40, moment: 20) { first.signal(SIGSTOP) }
      try second.wait(for: "pair: now alone", timeout: 10)
      first.signal(SIGCONT)
      try first.wait(for: "pair: now fenced", timeout: 10)
      try count(on: client, from: 41, to: 60)
      _ = try first.waitForExit()
    }

    /// A secondary that was stopped for longer than its primary waits has been given up, and must not serve as well.
    @Test func secondaryStopped_isDismissed() throws {
      let second = try secondary("tap1")
      let first = try primary("colo")
      try first.wait(for: "pair: now primary", timeout: 30)
      let client = try space.connect(port: 6379)
      try count(on: client, from: 1, to: 40, moment: 20) { second.signal(SIGSTOP) }
      try first.wait(for: "pair: alone", timeout: 10)
      second.signal(SIGCONT)
      try second.wait(for: "before this side could take over", timeout: 10)
      #expect(!second.console.contains("takingOver"))
      try count(on: client, from: 41, to: 60)
    }

    @Test func anotherKey_isRefusedByBothSides() throws {
      let other = folder.path("other")
      try makeKey(other)
      let second = try secondary("tap1", key: other)
      let first = try primary("remus")
      try first.wait(for: "does not have the same key", timeout: 20)
      try second.wait(for: "refused a connection", timeout: 10)
      try first.wait(for: "lab: ready", timeout: 20)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "ping"]) == "PONG\n", "it serves unprotected")
    }

    /// Neither side takes a key that others can read, or have made.
    @Test(arguments: ["primary", "secondary"]) func keyOfOthers_isRefused(side: String) throws {
      let arguments =
        side == "secondary"
        ? ["secondary", "--listen", "127.0.0.1:7001", "--key", key]
        : ["primary", "--kernel", Environment.labGuest, "--replicate", "127.0.0.1:7001", "--key", key]
      try FileManager.default.setAttributes([.posixPermissions: 0o640], ofItemAtPath: key)
      let readable = try run(Environment.minivmm, arguments)
      #expect(readable.status == 77 && readable.errors.contains("chmod 600"), "\(readable.errors)")
      try FileManager.default.setAttributes([.posixPermissions: 0o600, .ownerAccountID: 65534], ofItemAtPath: key)
      let foreign = try run(Environment.minivmm, arguments)
      #expect(foreign.status == 77 && foreign.errors.contains("chown"), "\(foreign.errors)")
    }

    /// What the secondary can't follow, the primary is told once, with what to do; it serves, and tries again in vain.
    @Test(arguments: ["none", "two", "larger", "card"]) func otherMachine_thePrimaryHearsWhy(machine: String) throws {
      let (disk, copy) = (folder.path("disk"), folder.path("copy"))
      for (path, size) in [(disk, 1 << 20), (copy, machine == "larger" ? 2 << 20 : 1 << 20), (copy + "2", 1 << 20)] {
        #expect(FileManager.default.createFile(atPath: path, contents: Data(count: size)))
      }
      let disks: [String] =
        machine == "none" ? [] : ["--disk", copy] + (machine == "two" ? ["--disk", copy + "2"] : [])
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key] + (machine == "card" ? [] : ["--net", "tap=tap1"])
          + disks, in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline",
          "service=kv ip=\(Namespace.guest)/24", "--net", "tap=tap0", "--replicate", "127.0.0.1:7000", "--key", key,
          "--disk", disk,
        ], in: space)
      let reasons = [
        "none": "the primary's disks are 1, this side's 0; give both as many",
        "two": "the primary's disks are 1, this side's 2; give both as many",
        "larger": "truncate -s \(1 << 20) \(copy)",
        "card": "one side has a network card and the other has none; give both one",
      ]
      try first.wait(for: reasons[machine]!, timeout: 20)
      try second.wait(for: "refused a primary: ", timeout: 10)
      #expect(staysTrue(for: 4) { first.count(of: "the other side refuses") == 1 }, "\(first.console)")
      #expect(second.count(of: "refused a primary") == 1, "\(second.console)")
      #expect(!first.console.contains("now syncing"))
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "ping"]) == "PONG\n", "it serves unprotected")
      // Cured, it is followed by the same processes.
      guard machine == "larger" else { return }
      truncate(copy, 1 << 20)
      second.signal(SIGTERM)
      _ = try second.waitForExit()
      let third = try secondary("tap1", port: 7000, key: nil, "--disk", copy)
      try first.wait(for: "pair: now primary", timeout: 20)
      try third.wait(for: "pair: now secondary", timeout: 10)
    }

    /// Connections that say nothing, too little, or nonsense, many and without end, do not keep a primary out.
    @Test func slowAndWrongCallers_keepNobodyOut() throws {
      let second = try secondary("tap1")
      let program = Environment.root.appending(path: "Tests/Harness/callers.py").path
      let callers = try Guest([program, "127.0.0.1", "7000", "60"], in: space, binary: "python3")
      try callers.wait(for: "calling", timeout: 10)
      let first = try primary("colo")
      try first.wait(for: "lab: ready", timeout: 20)
      try first.wait(for: "pair: a secondary is at", timeout: 2)
      try first.wait(for: "pair: now primary", timeout: 10)
      let client = try space.connect(port: 6379)
      try count(on: client, from: 1, to: 60, moment: 30) { first.signal(SIGKILL) }
      try second.wait(for: "pair: now alone", timeout: 10)
      #expect(callers.isRunning)
    }
  }
}
