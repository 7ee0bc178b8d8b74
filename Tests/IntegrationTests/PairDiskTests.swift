import Foundation
import Harness
import Testing

extension Integration {
  @Suite(
    "Pairs' disks", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3)))
  struct PairDisks {
    private let folder = TestFolder()

    private func areSame(_ first: String, _ second: String) throws -> Bool {
      try run("cmp", [first, second]).status == 0
    }

    /// A host comes back with the disk file it had before, which holds data where the primary's has holes.
    @Test func secondaryWithAnOldDisk_getsThePrimarysHolesToo() throws {
      let pair = try ProtectedPair(mode: "remus", folder: folder.url)
      let secondary = try pair.addSecondary()
      try pair.waitUntilProtected()
      #expect(try areSame(pair.disk(of: pair.primary).path, pair.disk(of: secondary).path))
      let size = try run("du", ["-k", pair.disk(of: secondary).path]).output
      #expect(size.hasPrefix("0"), "sparse like the primary's: \(size)")
    }

    /// A guest that writes faster than anybody can follow, while its disk is copied and after it: it waits, and stays
    /// protected, and the survivor's disk is the primary's.
    @Test(arguments: ["100ms", "5s"]) func moreIsWrittenThanASecondaryKeeps_itStays(period: String) throws {
      let (key, disks) = (folder.path("key"), (0...1).map { folder.path("disk\($0)") })
      try makeKey(key)
      for disk in disks { try run("truncate", ["-s", "256M", disk]) }
      let space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1", "--disk", disks[1]], in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--memory", "256M", "--net", "tap=tap0", "--disk", disks[0],
          "--replicate", "127.0.0.1:7000", "--key", key, "--mode", "remus", "--epoch-max", period, "--cmdline",
          "service=kv,disk disk=seq-write,bs=1048576,qd=64,seconds=12 ip=\(Namespace.guest)/24",
        ], in: space)
      try first.wait(for: "pair: now primary", timeout: 30)
      try first.wait(for: "errors=0", timeout: 60)
      #expect(!first.console.contains("pair: alone"), "\(first.console)")
      #expect(try waitUntil(seconds: 10) { try areSame(disks[0], disks[1]) })
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
      #expect(try areSame(disks[0], disks[1]))
    }
  }
}
