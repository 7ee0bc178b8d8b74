import Foundation
import Harness
import Testing

extension Integration {
  /// Linux with its servers on the virtio-blk disk.
  @Suite(
    "Linux", .enabled(if: Environment.hasLinux && Environment.isRoot, "needs root, /dev/kvm and the built Linux guest"))
  struct Linux {
    /// Arguments of a machine on a private copy of the disk.
    static func arguments(
      _ space: Namespace, disk: String, cpus: Int = 1, memory: String = "128M", more: String = ""
    ) throws -> [String] {
      let out = Environment.linuxGuest
      try run("cp", ["--sparse=always", out.appending(path: "disk.img").path, disk])
      let line = try String(contentsOf: out.appending(path: "cmdline"), encoding: .utf8)
        .trimmingCharacters(in: .whitespacesAndNewlines)
      return [
        "run", "--kernel", out.appending(path: "vmlinux").path, "--initrd",
        out.appending(path: "initramfs.cpio").path, "--memory", memory, "--cpus", "\(cpus)", "--disk", disk, "--net",
        "tap=\(space.tap)", "--cmdline",
        line + " ip=\(Namespace.guest)::\(Namespace.host):255.255.255.0::eth0:off " + more,
      ]
    }

    /// The checksum of a file that nginx serves, as the build wrote it down.
    static func checksum(of name: String) throws -> String {
      let sums = try String(contentsOf: Environment.linuxGuest.appending(path: "www.sha256"), encoding: .utf8)
      let line = try #require(sums.split(separator: "\n").first { $0.hasSuffix("  \(name)") })
      return String(line.prefix { $0 != " " })
    }

    /// Each server is asked once, over one connection each.
    private func expectAllServersAnswer(_ space: Namespace) throws {
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "set", "k", "linux"], timeout: 60) == "OK\n")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"], timeout: 60) == "linux\n")
      let cache = try space.connect(port: 11211, timeout: 20_000)
      #expect(try cache.exchange("set m 0 0 1\r\nx\r\n", expecting: "STORED\r\n", timeout: 30_000))
      #expect(try cache.exchange("get m\r\n", expecting: "VALUE m 0 1\r\nx\r\nEND\r\n", timeout: 30_000))
      let page = Snapshot.path("index.html")
      defer { try? FileManager.default.removeItem(atPath: page) }
      try fetch("index.html", to: page, space)
    }

    /// Downloads a file from nginx and compares its checksum.
    private func fetch(_ name: String, to path: String, _ space: Namespace) throws {
      try space.inside(
        "curl", ["-sS", "--fail", "--max-time", "120", "-o", path, "http://\(Namespace.guest)/\(name)"], timeout: 130)
      #expect(try run("sha256sum", [path]).output.hasPrefix(try Self.checksum(of: name)), "\(name) arrived damaged")
    }

    /// The first 4 MiB of 16MiB.txt, whose line n is n in seven digits. All of it takes more than a minute where the guest's
    /// kernel is interpreted and other work runs.
    private func fetchStartOfLargeFile(to path: String, _ space: Namespace) throws {
      let lines = (4 << 20) / 8
      try space.inside(
        "curl",
        [
          "-sS", "--fail", "--max-time", "120", "--range", "0-\(8 * lines - 1)", "-o", path,
          "http://\(Namespace.guest)/16MiB.txt",
        ], timeout: 130)
      let expected = Data((0..<lines).map { String(format: "%07d\n", $0) }.joined().utf8)
      let isWhole = try Data(contentsOf: URL(filePath: path)) == expected
      #expect(isWhole, "4 MiB arrived damaged")
      try FileManager.default.removeItem(atPath: path)
    }

    @Test(arguments: [2, 4]) func severalCPUs_bootAndServe(cpus: Int) throws {
      let space = try Namespace()
      let disk = Snapshot.path("smp.img")
      defer { try? FileManager.default.removeItem(atPath: disk) }
      let guest = try Guest(Self.arguments(space, disk: disk, cpus: cpus), in: space)
      try guest.wait(for: "minivmm: press Enter", timeout: 300)
      guest.type("")
      guest.type("grep -c ^processor /proc/cpuinfo")
      try guest.wait(for: "\n\(cpus)", timeout: 60)
      try expectAllServersAnswer(space)
    }

    /// 5 GiB, all but 256 MiB of it reserved on the command line, and no bounce buffers (64 MiB to clear): an interpreted
    /// kernel would take minutes to set up all of it. Linux allocates from the highest zone first: disk and network buffers
    /// lie above 4 GiB.
    @Test func ramAbove4GiB_isUsed() throws {
      let space = try Namespace()
      let (disk, target) = (Snapshot.path("high.img"), Snapshot.path("high.txt"))
      defer { for path in [disk, target] { try? FileManager.default.removeItem(atPath: path) } }
      let guest = try Guest(
        Self.arguments(
          space, disk: disk, memory: "5G",
          more: "minivmm.services=nginx swiotlb=noforce memmap=2944M$96M memmap=1920M$4224M"),
        in: space)
      try guest.wait(for: "minivmm: press Enter", timeout: 300)
      guest.type("")
      guest.type("cat /proc/iomem")
      try guest.wait(for: "100000000-107ffffff : System RAM", timeout: 60)
      try fetch("1MiB.txt", to: target, space)
    }

    /// One boot for everything a single CPU shows: real servers, snapshot in the middle of a download, power off.
    @Test func serves_andGoesOnMidDownloadAfterRestore() throws {
      let space = try Namespace()
      let (disk, control, file) = (Snapshot.path("up.img"), Snapshot.path("control"), Snapshot.path("linux.snapshot"))
      defer { for path in [disk, file] { try? FileManager.default.removeItem(atPath: path) } }
      let first = try Guest(Self.arguments(space, disk: disk) + ["--control", control], in: space)
      try first.wait(for: "minivmm: services started", timeout: 240)
      try expectAllServersAnswer(space)
      let cache = try space.connect(port: 11211, timeout: 20_000)
      #expect(try cache.exchange("get m\r\n", expecting: "VALUE m 0 1\r\nx\r\nEND\r\n", timeout: 30_000))

      let target = Snapshot.path("download")
      defer { try? FileManager.default.removeItem(atPath: target) }
      try fetchStartOfLargeFile(to: target, space)

      let download = try Child([
        "ip", "netns", "exec", space.name, "curl", "-s", "--max-time", "120", "--limit-rate", "200k", "-o", target,
        "http://\(Namespace.guest)/1MiB.txt",
      ])
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
      #expect(download.wait() == 0)
      #expect(
        try run("sha256sum", [target]).output.hasPrefix(try Self.checksum(of: "1MiB.txt")), "damaged by the restore")
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"], timeout: 60) == "linux\n")
      #expect(try cache.exchange("get m\r\n", expecting: "VALUE m 0 1\r\nx\r\nEND\r\n", timeout: 30_000))
      withExtendedLifetime(second) {}
    }
  }
}
