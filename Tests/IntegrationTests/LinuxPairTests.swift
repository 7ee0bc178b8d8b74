import Foundation
import Harness
import Testing

extension Integration {
  /// Linux that is protected in colo++, and knows the pair's registers.
  @Suite(
    "Linux in colo++",
    .enabled(if: Environment.hasLinux && Environment.isRoot, "needs root, /dev/kvm and the built Linux guest"),
    .timeLimit(.minutes(4 * Environment.patience)))
  struct LinuxPair {
    private let space: Namespace
    private let folder = TestFolder()

    init() throws {
      space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      try makeKey(folder.path("key"))
    }

    private func secondary(_ more: String...) throws -> Guest {
      try run(
        "cp", ["--sparse=always", Environment.linuxGuest.appending(path: "disk.img").path, folder.path("second.img")])
      let guest = try Guest(
        [
          "secondary", "--listen", "127.0.0.1:7000", "--key", folder.path("key"), "--net", "tap=tap1", "--disk",
          folder.path("second.img"), "--shrink", "guest", "--control", folder.path("second"),
        ] + more, in: space)
      try guest.wait(for: "waiting for a primary", timeout: 20)
      return guest
    }

    private func primary(services: String = "memcached,nginx", _ more: String...) throws -> Guest {
      let arguments = try Linux.arguments(
        space, disk: folder.path("first.img"), cpus: 2, more: "minivmm.services=\(services)")
      return try Guest(
        ["primary"] + arguments.dropFirst() + [
          "--replicate", "127.0.0.1:7000", "--key", folder.path("key"), "--mode", "colo++", "--control",
          folder.path("first"),
        ] + more, in: space)
    }

    private func status(_ control: String) throws -> [String: Any] {
      let outcome = try run(Environment.minivmm, ["status", "--control", folder.path(control), "--json"])
      let status = try JSONSerialization.jsonObject(with: Data(outcome.output.utf8)) as? [String: Any]
      return try #require(status?["pair"] as? [String: Any], "\(outcome.errors)")
    }

    private func activeCPUs(_ control: String) -> Int? { (try? status(control))?["activeCPUs"] as? Int }

    private func early() throws -> Int {
      try #require((try status("first")["held"] as? [String: Any])?["early"] as? Int)
    }

    private func hit(_ key: String, _ value: String) -> String {
      "VALUE \(key) 0 \(value.utf8.count)\r\n\(value)\r\nEND\r\n"
    }

    /// One boot for all: nginx's files leave early from the page cache; memcached's hits do, and say what was stored; the secondary
    /// gets by with one CPU of two, and has both when it has taken over.
    @Test func filesAndHits_leaveEarly_andTheSecondaryRestsACPU() throws {
      let second = try secondary()
      let first = try primary()
      try first.wait(for: "minivmm: services started", timeout: 120)
      try second.wait(for: "pair: now secondary", timeout: 60)
      #expect(waitUntil(seconds: 20) { activeCPUs("second") == 1 }, "\(String(describing: activeCPUs("second")))")
      #expect(activeCPUs("first") == 2)

      // The first time the file is read from the disk, and no checkpoint holds it in the page cache.
      for round in 0..<3 {
        let before = try early()
        let fetched = try run(
          "ip",
          [
            "netns", "exec", space.name, "curl", "-sS", "--fail", "--max-time", "60", "-o", folder.path("file"),
            "http://\(Namespace.guest)/1MiB.txt",
          ], timeout: 70)
        #expect(fetched.status == 0, "\(fetched.errors)")
        let sums = try String(contentsOf: Environment.linuxGuest.appending(path: "www.sha256"), encoding: .utf8)
        let sum = try run("sha256sum", [folder.path("file")]).output.prefix(64)
        #expect(sums.contains("\(sum)  1MiB.txt"))
        if round > 0 { #expect(try early() > before + 5, "of its 16 segments and more") }
        usleep(400_000)
      }
      let files = try early()

      let client = try space.connect(port: 11211, timeout: 20_000)
      func expect(_ request: String, _ reply: String) throws {
        #expect(try client.exchange(request, expecting: reply, timeout: 20_000), "\(request)")
      }
      try expect("set long 0 0 9000\r\n\(String(repeating: "x", count: 9000))\r\n", "STORED\r\n")
      for round in 1...4 {
        let value = String(repeating: "\(round)", count: 10 * round)
        try expect("set k 0 0 \(value.utf8.count)\r\n\(value)\r\n", "STORED\r\n")
        for _ in 0..<8 { try expect("get k\r\n", hit("k", value)) }
        // Beside a miss, and behind another reply.
        try expect("get k none\r\n", hit("k", value))
        try expect("get k\r\nget none\r\n", hit("k", value) + "END\r\n")
      }
      // A value on several pages, which is known when a checkpoint has it.
      for _ in 0..<8 { try expect("get long\r\n", hit("long", String(repeating: "x", count: 9000))) }
      let told = try early()
      #expect(told > files)

      // "STORED" is the same bytes each time, and confirms something else. What it answers is not early; hits are, once a
      // checkpoint has what was stored.
      for round in 1...6 { try expect("set k 0 0 2\r\n\(10 + round)\r\n", "STORED\r\n") }
      #expect(try early() == told)
      #expect(
        try waitUntil(seconds: 20) {
          try expect("get k\r\n", hit("k", "16"))
          return try early() > told + 2
        })
      let hits = try early()

      // It changes answers, and no item: from now on nothing leaves early.
      try expect("flush_all\r\n", "OK\r\n")
      try expect("set k 0 0 1\r\nx\r\n", "STORED\r\n")
      for _ in 0..<8 { try expect("get k\r\n", hit("k", "x")) }
      #expect(try early() == hits)

      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 20)
      #expect(waitUntil(seconds: 10) { activeCPUs("second") == 2 })
      try expect("get k\r\n", hit("k", "x"))
    }

    /// The secondary's guest stands still while clients go on: each request acknowledges the reply to the one before, which that
    /// guest has yet to say. Linux drops such a segment as it comes; the client was told that it has come, and does not send it again.
    @Test func requestsThatAcknowledgeWhatTheSurvivorHasYetToSay_areNotLost() throws {
      let first = try primary("--epoch-max", "500ms")
      try first.wait(for: "minivmm: services started", timeout: 200)
      let second = try secondary("--fault", "loaded=delay:5000@20")
      try second.wait(for: "pair: now secondary", timeout: 60)
      let client = try space.connect(port: 11211, timeout: 20_000)
      #expect(try client.exchange("set k 0 0 1\r\nx\r\n", expecting: "STORED\r\n", timeout: 20_000))
      for _ in 0..<2000 where second.count(of: "fault: delay") == 0 {
        guard try client.exchange("get k\r\n", expecting: hit("k", "x"), timeout: 20_000) else {
          return #expect(Bool(false))
        }
      }
      #expect(second.count(of: "fault: delay") == 1)
      let before = try early()
      for _ in 0..<10 { #expect(try client.exchange("get k\r\n", expecting: hit("k", "x"), timeout: 20_000)) }
      #expect(try early() > before)
      for _ in 0..<4 { #expect(try client.exchange("get k\r\n", expecting: hit("k", "x"), timeout: 20_000)) }
      first.signal(SIGKILL)
      for _ in 0..<5 { #expect(try client.exchange("get k\r\n", expecting: hit("k", "x"), timeout: 20_000)) }
      #expect(second.count(of: "pair: now alone") == 1)
    }

    /// Nanoseconds that a vCPU's thread has run, by its name.
    private func runs(_ guest: Guest) throws -> [String: UInt64] {
      let tasks = "/proc/\(guest.identifier)/task"
      var runs: [String: UInt64] = [:]
      for task in try FileManager.default.contentsOfDirectory(atPath: tasks) {
        func text(_ file: String) throws -> String {
          try String(contentsOfFile: "\(tasks)/\(task)/\(file)", encoding: .utf8)
        }
        let name = try text("comm")
        guard name.hasPrefix("vcpu") else { continue }
        runs[String(name.dropLast())] = try text("schedstat").split(separator: " ").first.flatMap { UInt64($0) }
      }
      return runs
    }

    /// A frozen CPU has nothing to run and no tick, though there is work for all: its thread sleeps, but for timers that were pending
    /// there when it was frozen.
    @Test func frozenCPU_sleeps() throws {
      let second = try secondary()
      let first = try primary(services: "locks", "--epoch-max", "10s")
      try first.wait(for: "minivmm: services started", timeout: 120)
      try second.wait(for: "pair: now secondary", timeout: 60)
      #expect(waitUntil(seconds: 20) { activeCPUs("second") == 1 })
      var quiet = 0
      var before = try runs(second)
      for _ in 0..<10 {
        // As long as the other, which has all the work, needs for a quarter of a second of it.
        var after = before
        let hasWorked = try waitUntil(seconds: 10) {
          after = try runs(second)
          return try #require(after["vcpu0"]) - #require(before["vcpu0"]) > 250_000_000
        }
        #expect(hasWorked)
        #expect(after["vcpu1"] != nil)
        if after["vcpu1"] == before["vcpu1"] { quiet += 1 }
        before = after
      }
      // With a tick, or a device that is polled from there, none is.
      #expect(quiet >= 3, "of ten")
      withExtendedLifetime(first) {}
    }
  }
}
