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
