import Foundation
import Harness
import Testing

extension Integration {
  /// Who may have a control socket's path, and what its clients can do to the machine.
  @Suite(
    "Control socket", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(2)))
  struct ControlSocket {
    let folder = TestFolder()
    var path: String { folder.path("control") }

    func machine() throws -> Guest {
      let guest = try Guest([
        "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=idle", "--control", path,
      ])
      try guest.wait(for: "lab: ready", timeout: 20)
      return guest
    }

    func second() throws -> Outcome {
      try run(
        Environment.minivmm,
        [
          "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=poweroff", "--control",
          path,
        ])
    }

    func status() throws -> Int32 { try run(Environment.minivmm, ["status", "--control", path]).status }

    var inode: UInt64? { try? FileManager.default.attributesOfItem(atPath: path)[.systemFileNumber] as? UInt64 }

    @Test func path_isNotTakenFromAMachineWhoseBacklogIsFull() throws {
      let first = try machine()
      let before = try #require(inode)
      first.signal(SIGSTOP)
      var clients: [UnixClient] = []
      while let client = try UnixClient(path), clients.count < 100 { clients.append(client) }
      try #require(clients.count < 100, "the backlog is never full")
      let outcome = try second()
      #expect(outcome.status == 75, "\(outcome.errors)")
      #expect(outcome.errors.contains("in use by another machine"))
      #expect(inode == before)
      clients = []
      first.signal(SIGCONT)
      #expect(try status() == 0)
    }

    @Test func path_ofAMachineThatWasKilled_isTaken() throws {
      let first = try machine()
      first.signal(SIGKILL)
      _ = try first.waitForExit()
      #expect(inode != nil)
      #expect(try second().status == 0)
      #expect(inode == nil, "it goes with the machine")
    }

    @Test func path_ofAFile_isLeftAlone() throws {
      #expect(FileManager.default.createFile(atPath: path, contents: Data("precious".utf8)))
      let outcome = try second()
      #expect(outcome.status == 73, "\(outcome.errors)")
      #expect(outcome.errors.contains("is not a socket"))
      #expect(FileManager.default.contents(atPath: path) == Data("precious".utf8))
    }

    @Test func path_thatIsEmpty_isRefused() throws {
      let outcome = try run(Environment.minivmm, ["run", "--kernel", Environment.labGuest, "--control", ""])
      #expect(outcome.status == 73, "\(outcome.errors)")
    }

    /// The first machine's socket was removed by somebody, and another machine has the path now.
    @Test func path_thatIsAnothersNow_staysWhenTheFirstEnds() throws {
      let first = try machine()
      try FileManager.default.removeItem(atPath: path)
      let other = try machine()
      let before = try #require(inode)
      first.signal(SIGTERM)
      #expect(try first.waitForExit() == 0)
      #expect(inode == before)
      #expect(try status() == 0)
      withExtendedLifetime(other) {}
    }

    /// Of many machines started at once for one path with an old socket, one gets it and answers.
    @Test func path_ofManyStartedAtOnce_hasOneOwner() throws {
      try machine().signal(SIGKILL)
      let guests = try (0..<4).map { _ in
        try Guest([
          "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=idle", "--control", path,
        ])
      }
      #expect(waitUntil(seconds: 20) { guests.count { $0.isRunning } == 1 })
      #expect(try status() == 0)
      for guest in guests where !guest.isRunning {
        #expect(try guest.waitForExit() == 75, "\(guest.console)")
      }
    }

    @Test(arguments: [2, 3, 16, 40]) func descriptorsBeyondTheFirst_areClosed(count: Int) throws {
      let guest = try machine()
      let client = try #require(try UnixClient(path))
      try client.send("{\"command\":\"status\"}\n")
      #expect(client.line().contains("\"ok\":true"))
      let before = ProcessThreads.descriptorCount(of: guest.identifier)
      for _ in 0..<20 {
        try client.send("{\"command\":\"status\"}\n", descriptors: count)
        #expect(client.line().contains("\"ok\":true"))
      }
      #expect(ProcessThreads.descriptorCount(of: guest.identifier) == before)
    }

    @Test func clientBeyondTheLimit_isRefusedWithAReason() throws {
      let guest = try machine()
      var clients: [UnixClient] = []
      for _ in 0..<8 {
        let client = try #require(try UnixClient(path))
        try client.send("{\"command\":\"status\"}\n")
        #expect(client.line().contains("\"ok\":true"))
        clients.append(client)
      }
      let outcome = try run(Environment.minivmm, ["status", "--control", path])
      #expect(outcome.status == 76)
      #expect(outcome.errors.contains("8 clients are connected"), "\(outcome.errors)")
      clients = []
      #expect(try waitUntil { try status() == 0 })
      withExtendedLifetime(guest) {}
    }

    /// A machine that has no descriptor left for a client waits for one, and does nothing else meanwhile.
    @Test func clientWithoutADescriptor_waits_andTakesNoTime() throws {
      let guest = try machine()
      // Descriptor 0 to n - 1 are in use but for one, and those from 512 on.
      let numbers = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(guest.identifier)/fd").compactMap {
        Int($0)
      }
      let free = try #require((0...).first { !numbers.contains($0) })
      #expect(try run("prlimit", ["--pid", "\(guest.identifier)", "--nofile=\(free):"]).status == 0)
      let client = try #require(try UnixClient(path))
      try client.send("{\"command\":\"status\"}\n")
      usleep(200_000)
      let before = ProcessThreads.cpuTime(of: guest.identifier)
      usleep(2_000_000)
      #expect(ProcessThreads.cpuTime(of: guest.identifier) - before < 0.5)
      #expect(try run("prlimit", ["--pid", "\(guest.identifier)", "--nofile=1024:"]).status == 0)
      #expect(client.line().contains("\"ok\":true"))
    }
  }
}
