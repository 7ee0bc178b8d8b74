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
  }
}
