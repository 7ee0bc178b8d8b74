import Foundation
import Harness
import Testing

extension Integration {
  /// What a pair can be asked; `minivmm pair` is in PairProcessTests.swift.
  @Suite(
    "Commands of a pair",
    .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct PairCommands {
    let space: Namespace
    let folder = TestFolder()
    var first: String { folder.path("first") }
    var second: String { folder.path("second") }
    var key: String { folder.path("key") }
    var kv: [String] { ["--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", cmdline("kv")] }

    init() throws {
      space = try Namespace(taps: ["tap0", "tap1", "tap2"], bridged: true)
      try makeKey(key)
    }

    func cmdline(_ service: String) -> String { "service=\(service) ip=\(Namespace.guest)/24" }

    func pair(_ arguments: [String] = []) throws -> Guest {
      let taps = ["--net", "tap=tap0", "--secondary-net", "tap=tap1"]
      return try Guest(
        ["pair"] + kv + taps + ["--control", first, "--secondary-control", second] + arguments, in: space)
    }

    func secondary(_ arguments: [String] = []) throws -> Guest {
      let guest = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1", "--control", second] + arguments,
        in: space)
      try guest.wait(for: "waiting for a primary", timeout: 20)
      return guest
    }

    func primary(tap: String = "tap0", _ arguments: [String] = []) throws -> Guest {
      try Guest(
        ["primary"] + kv + ["--net", "tap=\(tap)", "--replicate", "127.0.0.1:7000", "--key", key] + arguments, in: space
      )
    }

    func inStep(_ guest: Guest) throws {
      try guest.wait(for: "pair: now primary", timeout: 30)
      try guest.wait(for: "pair: now secondary", timeout: 30)
    }

    func ask(_ command: String, _ control: String) throws -> Outcome {
      try run(Environment.minivmm, [command, "--control", control])
    }

    /// The `status --json` of a side.
    func status(_ control: String) throws -> [String: Any] {
      let outcome = try run(Environment.minivmm, ["status", "--control", control, "--json"])
      try #require(outcome.status == 0, "\(outcome.errors)")
      #expect(outcome.output.split(separator: "\n").count == 1)
      return try #require(try JSONSerialization.jsonObject(with: Data(outcome.output.utf8)) as? [String: Any])
    }

    func pairStatus(_ control: String) throws -> [String: Any] {
      try #require(try status(control)["pair"] as? [String: Any])
    }

    /// Counts up on one connection, calling `at` between request `moment` and its reply.
    func count(on client: Connection, _ range: ClosedRange<Int>, moment: Int = -1, at: () throws -> Void = {})
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

    func children(of guest: Guest) -> [Int32] {
      let path = "/proc/\(guest.identifier)/task/\(guest.identifier)/children"
      return ((try? String(contentsOfFile: path, encoding: .utf8)) ?? "").split(separator: " ").compactMap { Int32($0) }
    }

    func isAlive(_ process: Int32) -> Bool {
      guard let text = try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8) else { return false }
      return !text.contains(") Z ")
    }

    // MARK: Status

    @Test func status_hasEveryName_onBothSides() throws {
      let guest = try pair()
      try inStep(guest)
      let client = try space.connect(port: 6379)
      try count(on: client, 1...20)
      let status = try pairStatus(first)
      #expect(status["role"] as? String == "primary" && status["mode"] as? String == "colo")
      let names: [String: Set<String>] = [
        "checkpoints": ["first", "period", "mismatch", "queueFull", "silence", "demand"],
        "pauseMicroseconds": ["p50", "p99", "max", "count"], "dirtyPages": ["last", "p50", "p99", "max"],
        "held": [
          "frames", "bytes", "oldestMicroseconds", "atOnce", "early", "contradicted",
          "contradictedBefore", "equal", "checkpointed", "refused",
        ],
        "heldMicroseconds": ["p50", "p99", "max", "count"],
        "lagMicroseconds": ["p50", "p99", "max", "count"], "receiveMicroseconds": ["p50", "p99", "max", "count"],
        "loadMicroseconds": ["p50", "p99", "max", "count"],
        "comparator": ["primaryFrames", "secondaryFrames", "mismatches", "overflows"],
      ]
      for (name, keys) in names {
        let object = try #require(status[name] as? [String: Any], "\(name)")
        #expect(Set(object.keys) == keys, "\(name)")
      }
      for name in ["epoch", "received", "loaded", "term", "bytesSent"] {
        #expect((status[name] as? Int ?? 0) > 0, "\(name)")
      }
      #expect(try ask("checkpoint", first).status == 0)
      #expect(try waitUntil { try pairStatus(second)["pagesRolledBack"] as? Int ?? 0 > 0 })
      let other = try pairStatus(second)
      #expect(try self.status(second)["state"] as? String == "following" && other["role"] as? String == "secondary")
      for name in ["loaded", "term", "inputFrames", "pagesRolledBack"] {
        #expect((other[name] as? Int ?? 0) > 0, "\(name)")
      }
      let text = try ask("status", first).output
      for word in ["state", "running", "primary, colo", "checkpoints", "pauses", "held now"] {
        #expect(text.contains(word), "\(text)")
      }
    }

    /// What left early is counted, and why the rest did not: a write's answer is never early, nor a value before a checkpoint has it.
    @Test func status_inColoPlusPlus_countsWhatLeftEarly() throws {
      let guest = try pair(["--mode", "colo++", "--epoch-max", "10s"])
      try inStep(guest)
      let client = try space.connect(port: 6379)
      func set(_ value: Int) throws { #expect(try client.exchange("set k \(value)\r\n", expecting: "+OK\r\n")) }
      func get(_ value: Int) throws { #expect(try client.exchange("get k\r\n", expecting: "$2\r\n\(value)\r\n")) }
      func number(_ object: String, _ name: String, _ status: [String: Any]) throws -> Int {
        try #require((status[object] as? [String: Any])?[name] as? Int, "\(object).\(name)")
      }
      func early() throws -> Int { try number("held", "early", try pairStatus(first)) }

      try set(10)
      let readable = try waitUntil(seconds: 20) {
        let before = try early()
        for _ in 0..<10 { try get(10) }
        if try early() == before + 10 { return true }
        // It is known from the checkpoint after the first reading on.
        #expect(try ask("checkpoint", first).status == 0)
        return false
      }
      #expect(readable)

      let before = try pairStatus(first)
      for value in 11...30 { try set(value) }
      let after = try pairStatus(first)
      #expect(
        try number("held", "early", before) > 0 && number("held", "early", after) == number("held", "early", before))
      #expect(try number("notEarly", "unmarked", after) >= number("notEarly", "unmarked", before) + 20)

      var value = 30
      let isHeld = try waitUntil(seconds: 20) {
        value += 1
        let before = try pairStatus(first)
        try set(value)
        try get(value)
        let after = try pairStatus(first)
        // A checkpoint in between may hold the value: then again.
        guard before["epoch"] as? Int == after["epoch"] as? Int else { return false }
        #expect(try number("held", "early", after) == number("held", "early", before))
        #expect(try number("notEarly", "changed", after) == number("notEarly", "changed", before) + 1)
        return true
      }
      #expect(isHeld)

      let names = [
        "notEarly": ["unmarked", "changed", "unknown", "refused", "unsought"],
        "earlyAwaited": ["input", "earlier", "checkpoint", "distrusted"],
      ]
      for (name, keys) in names {
        #expect(Set(try #require(after[name] as? [String: Any], "\(name)").keys) == Set(keys))
      }
    }

    @Test func secondary_answersFromTheStart_andRefusesWhatItCannot() throws {
      let guest = try secondary()
      #expect(try status(second)["state"] as? String == "waiting")
      #expect(try pairStatus(second)["role"] as? String == "joining")
      for command in ["checkpoint", "failover", "pause", "resume"] {
        let outcome = try ask(command, second)
        #expect(outcome.status == 76 && outcome.errors.contains("waits for a primary"), "\(outcome.errors)")
      }
      #expect(try ask("stop", second).status == 0)
      #expect(try guest.waitForExit() == 0)
    }

    @Test func watch_isOneLineASecond() throws {
      let guest = try pair()
      try inStep(guest)
      let outcome = try run(Environment.minivmm, ["watch", "--control", first, "--count", "3"])
      let lines = outcome.output.split(separator: "\n")
      #expect(
        lines.count == 3 && lines.allSatisfy { $0.contains("primary") && $0.contains("B/s") }, "\(outcome.output)")
      #expect(lines.last?.contains("period") == true, "\(outcome.output)")
    }

    /// On a terminal each look is drawn over the one before.
    @Test func watch_onATerminal_isDrawnAnew() throws {
      let guest = try pair()
      try inStep(guest)
      let command = "'\(Environment.minivmm)' watch --control '\(first)' --count 2"
      let outcome = try run("script", ["-qec", command, "/dev/null"], timeout: 20)
      let looks = outcome.output.components(separatedBy: "\u{1b}[H").dropFirst()
      #expect(outcome.status == 0 && looks.count == 2, "\(outcome.output)")
      for look in looks {
        #expect(look.hasSuffix("\u{1b}[J"), "\(look)")
        #expect(look.contains("primary, colo") && look.contains("each second: checkpoints"), "\(look)")
        #expect(look.components(separatedBy: "\r\n").dropLast().allSatisfy { $0.hasSuffix("\u{1b}[K") }, "\(look)")
      }
      #expect(looks.last?.contains("period") == true, "\(outcome.output)")
    }

    // MARK: Requests

    @Test func checkpoint_isTakenOnDemand_andRefusedWithoutASecondary() throws {
      let guest = try primary(tap: "tap0", ["--control", first, "--epoch-max", "5s"])
      try guest.wait(for: "lab: ready", timeout: 20)
      let refused = try ask("checkpoint", first)
      #expect(refused.status == 76 && refused.errors.contains("there is no secondary"), "\(refused.errors)")
      let other = try secondary()
      try guest.wait(for: "pair: now primary", timeout: 30)
      try other.wait(for: "pair: now secondary", timeout: 30)
      for demanded in 1...3 {
        let outcome = try ask("checkpoint", first)
        #expect(outcome.status == 0 && outcome.output.contains("the secondary has checkpoint"), "\(outcome.errors)")
        let causes = try #require(try pairStatus(first)["checkpoints"] as? [String: Int])
        #expect(causes["demand"] == demanded)
      }
      let wrong = try ask("checkpoint", second)
      #expect(wrong.status == 76 && wrong.errors.contains("ask the primary"), "\(wrong.errors)")
    }

    @Test(arguments: [true, false], ["colo", "remus"])
    func failover_movesTheGuest_andThePrimaryEnds(asksTheSecondary: Bool, mode: String) throws {
      let other = try secondary()
      let guest = try primary(tap: "tap0", ["--control", first, "--mode", mode])
      try guest.wait(for: "pair: now primary", timeout: 30)
      try other.wait(for: "pair: now secondary", timeout: 30)
      let client = try space.connect(port: 6379)
      try count(on: client, 1...60, moment: 30) {
        let outcome = try ask("failover", asksTheSecondary ? second : first)
        #expect(outcome.status == 0, "\(outcome.errors)")
      }
      try guest.wait(for: "pair: now fenced", timeout: 5)
      #expect(!guest.console.contains("now alone"), "two would serve")
      #expect(try guest.waitForExit() == 0)
      let status = try pairStatus(second)
      #expect(status["role"] as? String == "alone" && status["term"] as? Int == 2)
      try count(on: client, 61...80)
      let again = try ask("failover", second)
      #expect(again.status == 76 && again.errors.contains("there is no secondary"), "\(again.errors)")
      #expect(try ask("stop", second).status == 0)
      #expect(try other.waitForExit() == 0)
    }

    @Test func snapshotAndPause_ofAProtectedGuest() throws {
      let guest = try pair()
      try inStep(guest)
      let client = try space.connect(port: 6379)
      let file = folder.path("snapshot")
      try count(on: client, 1...40, moment: 20) {
        for _ in 0..<3 { try Snapshot.snapshot(first, to: file) }
      }
      let refused = try run(Environment.minivmm, ["snapshot", "--control", second, file + "2"])
      #expect(refused.status == 76 && refused.errors.contains("ask the primary"), "\(refused.errors)")
      #expect(!FileManager.default.fileExists(atPath: file + "2"))

      // Checkpoints go on, and none of them lets the guest run.
      #expect(try ask("pause", first).status == 0)
      try client.send("INCR n\r\n")
      #expect(try ask("checkpoint", first).status == 0)
      #expect(try client.receive(1, timeout: 400).isEmpty, "a paused guest does not answer")
      #expect(try status(first)["state"] as? String == "paused")
      #expect(try ask("resume", first).status == 0)
      #expect(try client.receive(5, timeout: 5000) == Array(":41\r\n".utf8))
      #expect(try pairStatus(first)["role"] as? String == "primary")
      guest.signal(SIGTERM)
      #expect(try guest.waitForExit() == 0)

      let restored = try Guest(["restore", file, "--net", "tap=tap2"], in: space)
      #expect(
        try waitUntil(seconds: 10) {
          try run("ip", ["netns", "exec", space.name, "redis-cli", "-h", Namespace.guest, "get", "n"]).output == "20\n"
        })
      withExtendedLifetime(restored) {}
    }

    @Test func stop_ofThePrimary_endsTheSecondaryToo() throws {
      let other = try secondary()
      let guest = try primary(tap: "tap0", ["--control", first])
      try other.wait(for: "pair: now secondary", timeout: 30)
      #expect(try ask("stop", first).status == 0)
      #expect(try guest.waitForExit() == 0)
      #expect(try other.waitForExit() == 0)
      #expect(other.console.contains("the guest has ended") && !other.console.contains("takingOver"))
    }

    @Test func stop_ofTheSecondary_leavesThePrimaryAlone() throws {
      let other = try secondary()
      let guest = try primary(tap: "tap0", ["--control", first])
      try guest.wait(for: "pair: now primary", timeout: 30)
      try other.wait(for: "pair: now secondary", timeout: 30)
      let client = try space.connect(port: 6379)
      try count(on: client, 1...60, moment: 30) { try #require(try ask("stop", second).status == 0) }
      #expect(try other.waitForExit() == 0)
      #expect(!other.console.contains("takingOver"))
      try guest.wait(for: "pair: now alone", timeout: 10)
      try count(on: client, 61...80)
      #expect(guest.isRunning)
    }

    // MARK: Joining

    @Test func primaryLostWhileItCopies_theSecondaryWaitsForAnother() throws {
      let (disk, copy) = (folder.path("disk"), folder.path("copy"))
      let size = 256 << 20
      for path in [disk, copy] {
        #expect(FileManager.default.createFile(atPath: path, contents: nil))
        truncate(path, size)
      }
      try run("dd", ["if=/dev/urandom", "of=\(disk)", "bs=1M", "count=256", "conv=notrunc"])
      let other = try secondary(["--disk", copy])
      func descriptors() -> Int {
        ((try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(other.identifier)/fd")) ?? []).count
      }
      let open = descriptors()
      for _ in 0..<2 {
        let lost = try primary(tap: "tap0", ["--disk", disk, "--control", first])
        try lost.wait(for: "pair: now syncing", timeout: 30)
        // It begins once signs of life have come by both paths.
        #expect(try waitUntil { try pairStatus(first)["copying"] as? Double ?? 2 <= 1 })
        lost.signal(SIGKILL)
        _ = try lost.waitForExit()
        #expect(try waitUntil(seconds: 10) { try status(second)["state"] as? String == "waiting" })
      }
      #expect(other.console.contains("waiting for another"))
      #expect(waitUntil { descriptors() <= open }, "\(descriptors()) open instead of \(open): a machine is left over")
      let last = try primary(tap: "tap0", ["--disk", disk])
      try last.wait(for: "pair: now primary", timeout: 60)
      try other.wait(for: "pair: now secondary", timeout: 30)
      let client = try space.connect(port: 6379)
      try count(on: client, 1...20, moment: 10) { last.signal(SIGKILL) }
    }

    @Test func secondPrimary_isRefused_andTheFirstStaysProtected() throws {
      let other = try secondary()
      let guest = try primary(tap: "tap0", ["--control", first])
      try guest.wait(for: "pair: now primary", timeout: 30)
      let late = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=idle", "--replicate",
          "127.0.0.1:7000", "--key", key,
        ], in: space)
      try late.wait(for: "it follows another primary", timeout: 20)
      #expect(!late.console.contains("now syncing"))
      let client = try space.connect(port: 6379)
      #expect(try pairStatus(first)["role"] as? String == "primary")
      try count(on: client, 1...40, moment: 20) { guest.signal(SIGKILL) }
      try other.wait(for: "pair: now alone", timeout: 10)
    }
  }
}
