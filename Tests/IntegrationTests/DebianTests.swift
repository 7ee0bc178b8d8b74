import Foundation
import Harness
import Testing

/// A Debian guest that guests/debian/build has made.
struct DebianGuest: CustomTestStringConvertible, Sendable {
  let release: String
  let flavour: String
  var testDescription: String { "\(release)-\(flavour)" }
  func file(_ name: String) -> String {
    Environment.root.appending(path: "guests/debian/out/\(release)-\(flavour)/\(name)").path
  }

  /// $MINIVMM_DEBIAN names the only one of interest, such as bookworm-cloud-amd64; it then has 4 CPUs.
  static let only = ProcessInfo.processInfo.environment["MINIVMM_DEBIAN"]
  static let cpus = only == nil ? [1, 4] : [4]

  static let all = ["bookworm", "trixie"].flatMap { release in
    ["cloud-amd64", "amd64"].map { DebianGuest(release: release, flavour: $0) }
  }.filter { guest in
    FileManager.default.fileExists(atPath: guest.file("vmlinuz")) && only.map { guest.testDescription == $0 } != false
  }

  /// Such a kernel does not start where KVM interprets it.
  static let canRun =
    Environment.hasKVM && Environment.isRoot
    && (try? run(Environment.minivmm, ["doctor"], timeout: 120).output.contains("native: ")) == true
}

extension Integration {
  /// Debian's own kernels, as they come: they learn of the machine by ACPI alone.
  @Suite(
    "Debian", .enabled(if: !DebianGuest.all.isEmpty, "needs guests/debian/build"),
    .enabled(if: DebianGuest.canRun, "needs root and a KVM that does not interpret the guest's kernel"))
  struct Debian {
    /// The drivers' modules are loaded by a small initrd, which powers off by ACPI.
    @Test(arguments: DebianGuest.all, DebianGuest.cpus) func kernel_findsDiskAndCard(guest: DebianGuest, cpus: Int)
      throws
    {
      let space = try Namespace()
      let folder = TestFolder()
      let disk = folder.path("disk.img")
      try run("truncate", ["-s", "64M", disk])
      let machine = try Guest(
        [
          "run", "--kernel", guest.file("vmlinuz"), "--initrd", guest.file("probe.cpio"), "--memory", "256M", "--cpus",
          "\(cpus)", "--disk", disk, "--net", "tap=\(space.tap),mac=52:54:00:00:00:07", "--cmdline",
          "console=ttyS0 quiet",
        ], in: space)
      #expect(try machine.waitForExit(timeout: 300) == 0, "\(machine.console)")
      #expect(machine.console.contains(" \(cpus) CPUs"), "\(machine.console)")
      #expect(machine.console.contains("debian: disk vda of 131072 sectors"), "\(machine.console)")
      #expect(machine.console.contains("debian: card 52:54:00:00:00:07"), "\(machine.console)")
      #expect(!machine.console.contains("found twice"), "\(machine.console)")
    }

    /// The initrd of Debian's packages, and a root by debootstrap: from the kernel to a client, and off.
    @Test(arguments: DebianGuest.all, DebianGuest.cpus) func root_servesAClient_andPowersOff(
      guest: DebianGuest, cpus: Int
    ) throws {
      let space = try Namespace()
      let folder = TestFolder()
      let disk = folder.path("disk.img")
      try run("cp", ["--sparse=always", guest.file("disk.img"), disk], timeout: 120)
      let machine = try Guest(
        [
          "run", "--kernel", guest.file("vmlinuz"), "--initrd", guest.file("initrd.img"), "--memory", "512M", "--cpus",
          "\(cpus)", "--disk", disk, "--net", "tap=\(space.tap)", "--cmdline",
          "console=ttyS0 quiet root=/dev/vda init=/sbin/service address=\(Namespace.guest)/24",
        ], in: space)
      try machine.wait(for: "debian: serving on", timeout: 600)
      #expect(machine.console.contains("debian: root /dev/vda"), "\(machine.console)")
      #expect(machine.console.contains(" \(cpus) CPUs"), "\(machine.console)")
      func get(_ page: String) throws -> String {
        try space.inside("curl", ["-sS", "--fail", "http://\(Namespace.guest)/\(page)"], timeout: 120)
      }
      #expect(try get("index.html").hasSuffix("at your service\n"))
      #expect(try get("cgi-bin/off") == "bye\n")
      #expect(try machine.waitForExit(timeout: 120) == 0, "\(machine.console)")
    }

    /// A machine with that guest's disk copied to `disk`, without the command: for `run` and `primary`.
    private func machine(_ guest: DebianGuest, tap: String, disk: String) throws -> [String] {
      try run("cp", ["--sparse=always", guest.file("disk.img"), disk], timeout: 120)
      return [
        "--kernel", guest.file("vmlinuz"), "--initrd", guest.file("initrd.img"), "--memory", "256M", "--disk", disk,
        "--net", "tap=\(tap)", "--cmdline",
        "console=ttyS0 quiet root=/dev/vda init=/sbin/service address=\(Namespace.guest)/24",
      ]
    }

    /// A download that takes a while; what it has fetched so far is in `path`.
    private func download(to path: String, _ space: Namespace) throws -> Guest {
      let url = "http://\(Namespace.guest)/numbers"
      return try Guest(
        ["-sS", "--fail", "--limit-rate", "64K", "-o", path, url], in: space, binary: "curl")
    }

    /// What the guest's service has written into `numbers`: a line of seven digits for each.
    private static let numbers = Data((1...262_144).map { String(format: "%07d\n", $0) }.joined().utf8)

    private func size(_ path: String) -> Int {
      (try? FileManager.default.attributesOfItem(atPath: path)[.size] as? Int) ?? 0
    }

    @Test func snapshot_goesOnInTheMiddleOfADownload() throws {
      let guest = try #require(DebianGuest.all.first)
      let space = try Namespace()
      let folder = TestFolder()
      let (control, file, copy) = (folder.path("control"), folder.path("debian.snapshot"), folder.path("numbers"))
      let disk = folder.path("disk.img")
      let first = try Guest(
        ["run", "--control", control] + machine(guest, tap: space.tap, disk: disk), in: space)
      try first.wait(for: "debian: serving on", timeout: 600)
      let client = try download(to: copy, space)
      #expect(try waitUntil(seconds: 60) { size(copy) > 1 << 18 })
      try Snapshot.snapshot(control, to: file, stayPaused: true)
      first.signal(SIGKILL)
      _ = try first.waitForExit()
      let second = try Guest(["restore", file, "--disk", disk, "--net", "tap=\(space.tap)"], in: space)
      #expect(try client.waitForExit(timeout: 120) == 0, "\(client.console)")
      #expect(try Data(contentsOf: URL(filePath: copy)) == Self.numbers)
      withExtendedLifetime(second) {}
    }

    /// A client's download goes on when the primary dies, and so does the service with another secondary.
    @Test(arguments: ["colo", "colo++"]) func pair_servesOnWhenItsPrimaryDies(mode: String) throws {
      let guest = try #require(DebianGuest.all.first)
      let space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      let folder = TestFolder()
      let (key, copy, disks) = (
        folder.path("key"), folder.path("numbers"), [folder.path("0.img"), folder.path("1.img")]
      )
      try makeKey(key)
      let first = try Guest(
        ["primary", "--replicate", "127.0.0.1:7000", "--key", key, "--mode", mode] + Environment.epochMax
          + machine(guest, tap: "tap0", disk: disks[0]), in: space)
      try first.wait(for: "debian: serving on", timeout: 600)
      try run("truncate", ["-r", disks[0], disks[1]])
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1", "--disk", disks[1]], in: space)
      try first.wait(for: "pair: now primary", timeout: 120)
      try second.wait(for: "pair: now secondary", timeout: 120)
      let client = try download(to: copy, space)
      #expect(try waitUntil(seconds: 60) { size(copy) > 1 << 18 })
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 30)
      #expect(try client.waitForExit(timeout: 120) == 0, "\(client.console)")
      #expect(try Data(contentsOf: URL(filePath: copy)) == Self.numbers)
    }
  }
}
