import Foundation

/// Random rounds against a protected guest, one after another, up to the first that fails.
public struct Campaign {
  public var rounds = 20
  public var seed: UInt64 = 1
  public var guest = GuestKind.lab
  public var modes = ["remus", "colo"]
  /// Whether it goes on after a failure.
  public var goesOn = false

  public init() {}

  /// Asked after each round: whether it is to end there.
  public var isInterrupted: () -> Bool = { false }

  /// Plays them all, and prints a line for each and a last one of all.
  /// - Returns: what failed, a text for each round.
  public func run() -> [String] {
    var failures: [String] = []
    var (played, kills, killsOfSeveral) = (0, 0, 0)
    defer {
      let several = "\(killsOfSeveral) of them with several CPUs"
      print("\(played) rounds, \(kills) kills, \(several); \(failures.count) rounds failed")
    }
    for number in 0..<UInt64(rounds) {
      var round = Round(seed: seed &+ number, modes: modes)
      if guest == .linux { round.suitLinux() }
      let name = "minivmm-campaign-\(getpid())-\(round.seed)"
      let folder = FileManager.default.temporaryDirectory.appending(path: name)
      var result: RoundRunner.Result
      var tries = 0
      repeat {
        try? FileManager.default.removeItem(at: folder)
        var runner = RoundRunner(round, guest: guest, folder: folder)
        result = runner.run()
        tries += 1
        if result.isVoid { print("round \(number + 1): this host stood still for \(Int(result.hostStood)) s") }
      } while result.isVoid && tries < 3 && !isInterrupted()
      if isInterrupted() {
        try? FileManager.default.removeItem(at: folder)
        break
      }
      played += 1
      kills += result.kills
      if round.cpus > 1 { killsOfSeveral += result.kills }
      print("round \(number + 1) seed \(round.seed): \(round.description)\(result.summary)")
      fflush(nil)
      guard !result.failures.isEmpty else {
        try? FileManager.default.removeItem(at: folder)
        continue
      }
      let text = result.failures.joined(separator: "\n  ")
      let mode = modes.count == 1 ? modes[0] : "both"
      print("  \(text)\n  kept: \(folder.path)")
      print("  replay: ./test --campaign 1 --seed \(round.seed) --guest \(guest.rawValue) --mode \(mode)")
      fflush(nil)
      failures.append("seed \(round.seed), \(round.description): \(text)")
      if !goesOn { break }
    }
    return failures
  }
}

extension RoundRunner.Result {
  fileprivate var summary: String {
    let seconds = String(format: "%.1f s", seconds)
    let remarks = (notes.isEmpty ? "" : " (\(notes.joined(separator: ", ")))") + ", kills: \(kills)"
    let stood = hostStood > 1 ? String(format: "the host stood still for %.1f s: ", hostStood) : ""
    let verdict = stood + (failures.isEmpty ? "ok" : "FAILED")
    guard let report else { return "\(remarks): \(seconds): \(verdict)" }
    let late = report.lateResets > 0 ? ", late resets: \(report.lateResets)" : ""
    return
      "\(remarks): gap \(report.gap) ms (\(report.slowest)), \(report.operations) operations\(late), \(seconds): \(verdict)"
  }
}
