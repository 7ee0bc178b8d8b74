import Foundation
import Harness
import Testing

extension Integration {
  @Suite(
    "Pairs' disks", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3 * Environment.patience)))
  struct PairDisks {
    private let folder = TestFolder()

    private func areSame(_ first: String, _ second: String) throws -> Bool {
      try run("cmp", [first, second]).status == 0
    }

    private var disks: [String] { (0...1).map { folder.path("disk\($0)") } }

    /// A primary and its secondary, each with a disk; returns when the secondary waits and the primary's guest boots.
    private func pair(in space: Namespace, disk size: String, _ options: [String]) throws -> (Guest, Guest) {
      let key = folder.path("key")
      try makeKey(key)
      for disk in disks { try run("truncate", ["-s", size, disk]) }
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap1", "--disk", disks[1]], in: space)
      try second.wait(for: "waiting for a primary", timeout: 10)
      let first = try Guest(
        [
          "primary", "--kernel", Environment.labGuest, "--net", "tap=tap0", "--disk", disks[0], "--replicate",
          "127.0.0.1:7000", "--key", key,
        ] + options, in: space)
      return (first, second)
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
      let space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      let (first, second) = try pair(
        in: space, disk: "256M",
        [
          "--memory", "256M", "--mode", "remus", "--epoch-max", period, "--cmdline",
          "service=kv,disk disk=seq-write,bs=1048576,qd=64,seconds=12 ip=\(Namespace.guest)/24",
        ])
      try first.wait(for: "pair: now primary", timeout: 30)
      try first.wait(for: "errors=0", timeout: 60)
      #expect(!first.console.contains("pair: alone"), "\(first.console)")
      #expect(try waitUntil(seconds: 10) { try areSame(disks[0], disks[1]) })
      first.signal(SIGKILL)
      try second.wait(for: "pair: now alone", timeout: 10)
      #expect(try areSame(disks[0], disks[1]))
    }

    /// A disk that makes one request wait delays neither a checkpoint nor the other services. When the primary dies in the middle
    /// of it, the survivor does it and says so; when the secondary dies, what is held leaves all the same.
    @Test(arguments: ["remus", "colo"], ["primary", "secondary"])
    func writeUnderWay_holdsNobodyUp_andIsNotLost(mode: String, dies: String) throws {
      let control = folder.path("control")
      let space = try Namespace(taps: ["tap0", "tap1"], bridged: true)
      let (first, second) = try pair(
        in: space, disk: "1M",
        [
          "--memory", "64M", "--mode", mode, "--control", control, "--fault", "diskTold=delay:30000", "--cmdline",
          "service=kv,journal ip=\(Namespace.guest)/24",
        ])
      try second.wait(for: "pair: now secondary", timeout: 30)
      let (journal, store) = (try space.connect(port: 5002), try space.connect(port: 6379))
      try journal.send("W 5 1\n")
      #expect(try store.exchange("SET a 1\r\n", expecting: "+OK\r\n"))
      for number in 1...5 {
        let outcome = try run(Environment.minivmm, ["checkpoint", "--control", control])
        #expect(outcome.status == 0, "checkpoint \(number): \(outcome.errors)")
        #expect(try store.exchange("INCR a\r\n", expecting: ":\(number + 1)\r\n"))
      }
      #expect(try journal.receive(1, timeout: 1).isEmpty, "the primary has not written it")
      (dies == "primary" ? first : second).signal(SIGKILL)
      if dies == "primary" {
        try second.wait(for: "pair: now alone", timeout: 10)
        let reply = "OK 5 1\n"
        #expect(String(decoding: try journal.receive(reply.utf8.count, timeout: 10_000), as: UTF8.self) == reply)
        let block = try FileHandle(forReadingFrom: URL(filePath: disks[1]))
        try block.seek(toOffset: 5 * 4096)
        #expect(try block.read(upToCount: 8) == Data("LABBLOCK".utf8))
      }
      #expect(try store.exchange("INCR a\r\n", expecting: ":7\r\n"))
    }
  }
}
