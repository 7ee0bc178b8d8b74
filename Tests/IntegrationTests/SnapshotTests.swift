import Foundation
import Harness
import Testing

extension Integration {
  /// Snapshot and restore of machines that serve clients.
  @Suite("Snapshot", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"))
  struct Snapshot {
    static func path(_ name: String) -> String {
      FileManager.default.temporaryDirectory.appending(path: "minivmm-\(getpid())-\(name)").path
    }

    static func snapshot(_ control: String, to file: String, stayPaused: Bool = false) throws {
      let outcome = try run(
        Environment.minivmm, ["snapshot", "--control", control, file] + (stayPaused ? ["--stay-paused"] : []))
      try #require(outcome.status == 0, "\(outcome.errors)")
    }

    /// 5G: RAM above 4 GiB, which the guest leaves alone.
    @Test(arguments: zip([1, 2, 2], ["64M", "64M", "5G"]))
    func lab_keepsItsDataAndAConnection(cpus: Int, memory: String) throws {
      let space = try Namespace()
      let (control, file) = (Self.path("control"), Self.path("lab.snapshot"))
      defer { try? FileManager.default.removeItem(atPath: file) }
      let first = try Guest(
        Clients.lab(memory: memory) + ["--net", "tap=\(space.tap)", "--cpus", "\(cpus)", "--control", control],
        in: space)
      try first.wait(for: "lab: ready", timeout: 20)
      let client = try space.connect(port: 11211)
      #expect(try client.exchange("set before 0 0 5\r\nsaved\r\n", expecting: "STORED\r\n"))
      try Self.snapshot(control, to: file, stayPaused: true)
      first.signal(SIGKILL)
      _ = try first.waitForExit()

      let second = try Guest(
        ["restore", file, "--net", "tap=\(space.tap)", "--cpus", "\(cpus)", "--control", control], in: space)
      // The connection opened before goes on, with the data of before.
      #expect(try client.exchange("get before\r\n", expecting: "VALUE before 0 5\r\nsaved\r\nEND\r\n", timeout: 20_000))
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "ping"]) == "PONG\n")
      withExtendedLifetime(second) {}
    }

    @Test func running_machineGoesOnAfterASnapshot() throws {
      let space = try Namespace()
      let (control, file) = (Self.path("control"), Self.path("twice.snapshot"))
      defer { try? FileManager.default.removeItem(atPath: file) }
      let guest = try Guest(Clients.lab + ["--net", "tap=\(space.tap)", "--control", control], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      let client = try space.connect(port: 11211)
      for round in 0..<5 {
        #expect(try client.exchange("set k 0 0 1\r\n\(round)\r\n", expecting: "STORED\r\n"))
        try Self.snapshot(control, to: file)
        #expect(try client.exchange("get k\r\n", expecting: "VALUE k 0 1\r\n\(round)\r\nEND\r\n"))
      }
    }

    /// Disks in another order or of another size are refused by name; the same ones are taken, at other paths as well.
    @Test func restore_refusesOtherDisks() throws {
      let (control, file) = (Self.path("control"), Self.path("disks.snapshot"))
      let paths = (0..<4).map { Self.path("disk\($0)") }
      defer { for path in paths + [file] { try? FileManager.default.removeItem(atPath: path) } }
      for (path, (byte, size)) in zip(
        paths, [(1, 1 << 20), (2, 1 << 20), (1, 1 << 20), (1, 1 << 19)] as [(UInt8, Int)])
      {
        try Data(repeating: byte, count: size).write(to: URL(filePath: path))
      }
      let guest = try Guest(
        ["run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=idle", "--control", control]
          + ["--disk", paths[0], "--disk", paths[1]])
      try guest.wait(for: "lab: ready", timeout: 20)
      try Self.snapshot(control, to: file, stayPaused: true)
      guest.signal(SIGKILL)
      _ = try guest.waitForExit()
      for (disks, says) in [
        ([1, 0], "disk 1, \(paths[1]), holds what disk 2"), ([3, 1], "disk 1, \(paths[3]), has 524288 bytes"),
        ([0], "2 disks"),
      ] {
        let outcome = try run(Environment.minivmm, ["restore", file] + disks.flatMap { ["--disk", paths[$0]] })
        #expect(outcome.status == 65 && outcome.errors.contains(says), "\(outcome.errors)")
      }
      let readOnly = try run(Environment.minivmm, ["restore", file, "--disk", paths[0] + ",ro", "--disk", paths[1]])
      #expect(readOnly.status == 65 && readOnly.errors.contains("leave out ,ro"), "\(readOnly.errors)")

      // A copy of the first, and one that has been written to since.
      try Data(repeating: 9, count: 1 << 20).write(to: URL(filePath: paths[1]))
      let restored = try Guest(["restore", file, "--disk", paths[2], "--disk", paths[1], "--control", control])
      try restored.wait(for: "warning: disk \(paths[1]) has been written to", timeout: 20)
      #expect(waitUntil(seconds: 20) { (try? run(Environment.minivmm, ["stop", "--control", control]))?.status == 0 })
      #expect(try restored.waitForExit() == 0, "\(restored.console)")
    }

    @Test func restore_refusesAnotherShapeAndDamage() throws {
      let (control, file) = (Self.path("control"), Self.path("shape.snapshot"))
      defer { try? FileManager.default.removeItem(atPath: file) }
      let guest = try Guest(
        ["run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=idle", "--control", control])
      try guest.wait(for: "lab: ready", timeout: 20)
      try Self.snapshot(control, to: file)
      let otherShape = try run(Environment.minivmm, ["restore", file, "--cpus", "2"])
      #expect(otherShape.status == 65)
      #expect(otherShape.errors.contains("the saved machine has"), "\(otherShape.errors)")

      var bytes = try Data(contentsOf: URL(filePath: file))
      let damaged = Self.path("damaged.snapshot")
      defer { try? FileManager.default.removeItem(atPath: damaged) }
      bytes[bytes.count / 2] ^= 1
      try bytes.write(to: URL(filePath: damaged))
      let checksum = try run(Environment.minivmm, ["restore", damaged])
      #expect(checksum.status == 65)
      #expect(checksum.errors.contains("checksum"), "\(checksum.errors)")

      try bytes.prefix(bytes.count / 3).write(to: URL(filePath: damaged))
      let truncated = try run(Environment.minivmm, ["restore", damaged])
      #expect(truncated.status == 65)
      #expect(truncated.errors.contains("ends early"), "\(truncated.errors)")
    }
  }
}
