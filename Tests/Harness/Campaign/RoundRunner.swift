import Foundation

/// Plays one round, and judges it.
public struct RoundRunner {
  public struct Result: Sendable {
    public var report: Load.Report?
    /// Empty when all is well.
    public var failures: [String]
    public var notes: [String]
    public var seconds: Double
  }

  private let round: Round
  private let guest: GuestKind
  private let folder: URL
  private var notes: [String] = []
  /// Nothing that happened has parted them.
  private var isPair = false

  public init(_ round: Round, guest: GuestKind = .lab, folder: URL) {
    self.round = round
    self.guest = guest
    self.folder = folder
  }

  public mutating func run() -> Result {
    let start = ContinuousClock.now
    var failures: [String] = []
    var report: Load.Report?
    do { report = try play(&failures) } catch { failures.append("\(error)") }
    let time = (ContinuousClock.now - start) / .seconds(1)
    return Result(report: report, failures: failures, notes: notes, seconds: time)
  }

  private mutating func play(_ failures: inout [String]) throws -> Load.Report {
    let primaryFaults = [round.blow.side == .primary ? round.blow.fault : nil]
    let secondaryFaults = [round.blow.side == .secondary ? round.blow.fault : nil, round.takeoverFault]
    let pair = try ProtectedPair(
      mode: round.mode, guest: guest, faults: primaryFaults.compactMap { $0 }, folder: folder)
    defer { pair.saveConsoles() }
    let load = try Load(seed: round.seed, in: pair.space, history: folder.appending(path: "history.jsonl"))
    try load.waitUntilReady()
    var secondary = try pair.addSecondary(faults: secondaryFaults.compactMap { $0 })
    var served: Guest?
    do {
      served = try suffer(round.blow, pair, secondary, load)
      if let second = round.second, served === pair.primary {
        if !isPair { secondary = try pair.addSecondary() }
        try pair.waitUntilProtected()
        served = try suffer(second, pair, secondary, load)
      }
    } catch { failures.append("\(error)") }
    load.open(depth: 1)
    usleep(700_000)
    if let served, !served.isRunning { failures.append("the survivor has ended: …\(served.console.suffix(300))") }
    let (report, history) = try load.finish()
    failures += report.failures
    failures += history.check()
    if report.operations < 50 { failures.append("only \(report.operations) operations: too little to judge by") }
    return report
  }

  /// Lets one thing happen, and waits until one side serves alone, or both go on. Returns who serves.
  private mutating func suffer(
    _ blow: Blow, _ pair: ProtectedPair, _ secondary: Guest, _ load: Load
  ) throws -> Guest {
    let (primary, times) = (pair.primary, pair.secondaries.count)
    let (victim, survivor) = blow.side == .primary ? (primary, secondary) : (secondary, primary)
    let servesAlone = blow.side == .primary ? "pair: now alone" : "pair: alone"
    if blow.fault == nil {
      try pair.waitUntilProtected()
      usleep(UInt32(blow.after) * 1000)
    } else if !waitUntil(seconds: 8, { victim.console.contains("pair: fault:") }) {
      notes.append("the point was not reached")
      isPair = true
      return primary
    }
    switch blow.kind {
    case .kill, .killAt:
      if blow.kind == .kill { victim.signal(SIGKILL) }
      load.open(depth: 4)
      try survivor.wait(for: servesAlone, times: blow.side == .primary ? 1 : times, timeout: 10)
      guard try victim.waitForExit(timeout: 5) == -SIGKILL else { throw HarnessError("the victim was not killed") }
      return survivor
    case .stop, .stopAt:
      if blow.kind == .stop { victim.signal(SIGSTOP) }
      load.open(depth: 4)
      try survivor.wait(for: servesAlone, times: blow.side == .primary ? 1 : times, timeout: 10)
      usleep(UInt32(blow.after % 300) * 1000)
      victim.signal(SIGCONT)
      // Who has been given up must know it, and end.
      try victim.wait(
        for: blow.side == .primary ? "pair: now fenced" : "before this side could take over", timeout: 10)
      _ = try victim.waitForExit(timeout: 10)
      return survivor
    case .delayAt, .spoilAt:
      load.open(depth: 4)
      usleep(1_500_000)
      return try whoServes(primary, secondary, times)
    }
  }

  /// After something that a pair may survive together: one of them serves, or both are still a pair.
  private mutating func whoServes(_ primary: Guest, _ secondary: Guest, _ times: Int) throws -> Guest {
    let primaryServes = primary.isRunning && !primary.console.contains("pair: now fenced")
    let secondaryServes = secondary.isRunning && secondary.console.contains("pair: now alone")
    if primaryServes, secondaryServes { throw HarnessError("split: both sides serve") }
    guard primaryServes || secondaryServes else { throw HarnessError("neither side serves") }
    let alone = primary.console.ranges(of: "pair: alone").count >= times
    isPair = !secondaryServes && !alone
    notes.append(secondaryServes ? "replaced" : alone ? "alone" : "still a pair")
    return secondaryServes ? secondary : primary
  }
}
