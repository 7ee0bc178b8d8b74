import Foundation
import Harness
import Testing

extension Integration {
  /// A real guest that plays broken and malicious drivers, with a disk and a card: the VMM lives on, and each device
  /// works again after a reset.
  @Suite(
    "Hostile guest", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"))
  struct HostileGuest {
    /// Seconds of random register and ring writes: $MINIVMM_FUZZ_SECONDS, or 10.
    static let seconds = ProcessInfo.processInfo.environment["MINIVMM_FUZZ_SECONDS"].flatMap(Int.init) ?? 10
    /// $MINIVMM_FUZZ_SEED replays.
    static let seed =
      ProcessInfo.processInfo.environment["MINIVMM_FUZZ_SEED"].flatMap(UInt32.init) ?? UInt32.random(in: 1..<1_000_000)

    private func play(_ line: String, cpus: Int, until last: String, timeout: TimeInterval) throws -> String {
      let space = try Namespace()
      let disk = Snapshot.path("hostile.img")
      try run("truncate", ["-s", "16M", disk])
      defer { try? FileManager.default.removeItem(atPath: disk) }
      let guest = try Guest(
        [
          "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cpus", "\(cpus)", "--disk", disk, "--net",
          "tap=\(space.tap)", "--cmdline", "service=hostile \(line) ip=\(Namespace.guest)/24",
        ], in: space)
      try guest.wait(for: last, timeout: timeout)
      #expect(try guest.waitForExit(timeout: 30) == 0, "console: …\(guest.console.suffix(600))")
      return guest.console
    }

    @Test(arguments: [1, 2]) func everyCase_isSurvivedAndRecoveredFrom(cpus: Int) throws {
      let console = try play("hostile=all seed=\(Self.seed)", cpus: cpus, until: "hostile: all done", timeout: 120)
      #expect(console.contains("not_recovered=0"), "seed \(Self.seed), console: …\(console.suffix(600))")
    }

    @Test func randomRegisterAndRingWrites_areSurvived() throws {
      print("hostile fuzz: MINIVMM_FUZZ_SEED=\(Self.seed) MINIVMM_FUZZ_SECONDS=\(Self.seconds)")
      let console = try play(
        "hostile=fuzz seconds=\(Self.seconds) seed=\(Self.seed)", cpus: 2, until: "hostile: fuzz done",
        timeout: TimeInterval(Self.seconds + 60))
      #expect(console.contains("hostile: recovered"), "seed \(Self.seed), console: …\(console.suffix(600))")
    }
  }
}
