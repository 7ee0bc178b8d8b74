import Foundation
import Harness
import Testing

extension Integration {
  /// Linux with its servers on the virtio-blk disk.
  @Suite(
    "Linux", .enabled(if: Environment.hasLinux && Environment.isRoot, "needs root, /dev/kvm and the built Linux guest"))
  struct Linux {
    /// Arguments of a machine on a private copy of the disk.
    static func arguments(_ space: Namespace, disk: String, cpus: Int = 1, more: String = "") throws -> [String] {
      let out = Environment.linuxGuest
      try run("cp", ["--sparse=always", out.appending(path: "disk.img").path, disk])
      let line = try String(contentsOf: out.appending(path: "cmdline"), encoding: .utf8)
        .trimmingCharacters(in: .whitespacesAndNewlines)
      return [
        "run", "--kernel", out.appending(path: "vmlinux").path, "--initrd",
        out.appending(path: "initramfs.cpio").path, "--memory", "128M", "--cpus", "\(cpus)", "--disk", disk, "--net",
        "tap=\(space.tap)", "--cmdline",
        line + " ip=\(Namespace.guest)::\(Namespace.host):255.255.255.0::eth0:off " + more,
      ]
    }

    @Test(arguments: [2, 4]) func boots_withSeveralCPUs(cpus: Int) throws {
      let space = try Namespace()
      let disk = Snapshot.path("smp.img")
      defer { try? FileManager.default.removeItem(atPath: disk) }
      let guest = try Guest(Self.arguments(space, disk: disk, cpus: cpus, more: "minivmm.services="), in: space)
      try guest.wait(for: "minivmm: press Enter", timeout: 300)
      guest.type("")
      guest.type("grep -c ^processor /proc/cpuinfo")
      try guest.wait(for: "\n\(cpus)", timeout: 60)
    }

    /// One boot for everything a single CPU shows: real servers, snapshot in the middle of a download, power off.
    @Test func serves_andGoesOnMidDownloadAfterRestore() throws {
      let space = try Namespace()
      let (disk, control, file) = (Snapshot.path("up.img"), Snapshot.path("control"), Snapshot.path("linux.snapshot"))
      defer { for path in [disk, file] { try? FileManager.default.removeItem(atPath: path) } }
      let first = try Guest(Self.arguments(space, disk: disk) + ["--control", control], in: space)
      try first.wait(for: "minivmm: services started", timeout: 240)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "set", "k", "linux"], timeout: 60) == "OK\n")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"], timeout: 60) == "linux\n")
      let cache = try space.connect(port: 11211, timeout: 20_000)
      #expect(try cache.exchange("set m 0 0 1\r\nx\r\n", expecting: "STORED\r\n", timeout: 30_000))
      let page = try space.inside("curl", ["-s", "http://\(Namespace.guest)/index.html"], timeout: 60)
      #expect(!page.isEmpty)

      let sums = try String(contentsOf: Environment.linuxGuest.appending(path: "www.sha256"), encoding: .utf8)
      let line = try #require(sums.split(separator: "\n").first { $0.contains("1m") || $0.contains("1M") })
      let (sum, name) = (line.split(separator: " ")[0], line.split(separator: " ")[1].split(separator: "/").last ?? "")
      let target = Snapshot.path("download")
      defer { try? FileManager.default.removeItem(atPath: target) }
      let download = Process()
      download.executableURL = URL(filePath: "/usr/bin/env")
      download.arguments = [
        "ip", "netns", "exec", space.name, "curl", "-s", "--max-time", "120", "--limit-rate", "200k", "-o", target,
        "http://\(Namespace.guest)/\(name)",
      ]
      try download.run()
      let isUnderWay = waitUntil(seconds: 30) {
        ((try? FileManager.default.attributesOfItem(atPath: target)[.size] as? Int) ?? 0) > 100_000
      }
      #expect(isUnderWay)
      try Snapshot.snapshot(control, to: file, stayPaused: true)
      #expect(download.isRunning, "the download must be under way")
      first.signal(SIGKILL)
      _ = try first.waitForExit()
      let second = try Guest(
        ["restore", file, "--disk", disk, "--net", "tap=\(space.tap)", "--control", control], in: space)
      download.waitUntilExit()
      #expect(download.terminationStatus == 0)
      let got = try run("sha256sum", [target]).output
      #expect(got.hasPrefix(String(sum)), "the file must arrive unharmed")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"], timeout: 60) == "linux\n")
      #expect(try cache.exchange("get m\r\n", expecting: "VALUE m 0 1\r\nx\r\nEND\r\n", timeout: 30_000))
      withExtendedLifetime(second) {}
    }
  }
}
