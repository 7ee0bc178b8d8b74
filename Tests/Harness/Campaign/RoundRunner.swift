import Foundation

/// Plays one round, and judges it.
public struct RoundRunner {
  public struct Result: Sendable {
    public var report: Load.Report?
    /// Empty when all is well.
    public var failures: [String]
    public var notes: [String]
    /// Sides that ended by SIGKILL: by a blow, or at a fault point.
    public var kills: Int
    public var seconds: Double
    /// For how long this host made anybody wait at a time, in seconds (``HostWitness``).
    public var hostStood: Double

    /// Whether nothing is wrong but that something came late, and the host may be why: such a round says nothing.
    public var isVoid: Bool {
      guard hostStood > 2, !failures.isEmpty else { return false }
      let lateness = [
        "no reply for", "not connected for", "did not end within", "on the console within", "ended without a blow",
      ]
      // What did not end in time is quoted, with what the clients said.
      let loss = ["reset by peer", "a reset of", "closed the connection", "no order explains it"]
      return failures.allSatisfy { text in
        lateness.contains { text.contains($0) } && !loss.contains { text.contains($0) }
      }
    }
  }

  private let round: Round
  private let guest: GuestKind
  private let folder: URL
  private var notes: [String] = []
  private var kills = 0
  /// The secondary that was started with the next blow's fault, for when it serves.
  private var armed: Guest?
  /// Who serves alone may still meet a fault that did not come when it was due: another blow could then leave nobody.
  private var isOver = false

  public init(_ round: Round, guest: GuestKind = .lab, folder: URL) {
    self.round = round
    self.guest = guest
    self.folder = folder
  }

  public mutating func run() -> Result {
    let start = ContinuousClock.now
    var failures: [String] = []
    var report: Load.Report?
    var witness: HostWitness?
    do {
      witness = try HostWitness(folder)
      report = try play(&failures)
    } catch { failures.append("\(error)") }
    let time = (ContinuousClock.now - start) / .seconds(1)
    return Result(
      report: report, failures: failures, notes: notes, kills: kills, seconds: time, hostStood: witness?.end() ?? 0)
  }

  private mutating func play(_ failures: inout [String]) throws -> Load.Report {
    let pair = try ProtectedPair(
      mode: round.mode, guest: guest, cpus: round.cpus, dirties: round.dirties, faults: faults(of: .primary, in: 0),
      folder: folder)
    defer { pair.saveConsoles() }
    var options = Load.Options()
    options.connections = (0..<round.load.connections).map { $0 % 2 == 0 ? 1 : 4 }
    options.pause = round.load.pause
    // Linux has neither the journal nor one store for both protocols, and seconds of requests in waiting where it is interpreted.
    if guest == .linux { (options.journal, options.udp, options.ipv6, options.patience) = (0, 0, [], 30) }
    let load = try Load(options, seed: round.seed, in: pair.space, history: folder.appending(path: "history.jsonl"))
    try load.waitUntilReady()
    do {
      for index in blows.indices where !isOver { try suffer(index, pair, load) }
    } catch { failures.append("\(error)") }
    kills = try pair.guests.count { try !$0.isRunning && $0.waitForExit() == -SIGKILL }
    let isPair = pair.secondary != nil
    load.open(depth: 1)
    usleep(700_000)
    if !pair.primary.isRunning { failures.append("who served has ended: …\(pair.primary.console.suffix(300))") }
    let (report, history) = try load.finish()
    failures += report.failures
    failures += history.check()
    if report.diskErrors > 0 { notes.append("disk errors: \(report.diskErrors)") }
    if isPair, pair.isAlone { failures.append("the pair ended without a blow: …\(pair.primary.console.suffix(300))") }
    if !failures.isEmpty { pair.saveStates() }
    failures += try checkDisks(pair, history)
    for guest in pair.guests {
      for line in guest.console.split(separator: "\n") where line.contains("ended by itself") {
        failures.append("\(line)")
      }
    }
    if report.operations < 50 { failures.append("only \(report.operations) operations: too little to judge by") }
    return report
  }

  /// The secondary's disk becomes that of who serves once nothing more is written, and this one has all that was acknowledged.
  private func checkDisks(_ pair: ProtectedPair, _ history: History) throws -> [String] {
    let disk = pair.disk(of: pair.primary)
    var failures: [String] = []
    if let secondary = pair.secondary, secondary.isRunning, !pair.isAlone {
      // Linux writes its journal some seconds later.
      let same = try waitUntil(seconds: guest == .lab ? 5 : 20) {
        try Harness.run("cmp", [disk.path, pair.disk(of: secondary).path]).status == 0
      }
      // Who has given up its secondary by now tells it no more.
      if !same {
        failures.append(pair.isAlone ? "the pair ended without a blow" : "the disks of a pair at rest differ")
      }
    }
    guard guest == .linux else { return try failures + JournalCheck.check(disk: disk, against: history) }
    pair.primary.signal(SIGKILL)
    _ = try pair.primary.waitForExit()
    return try failures + AppendOnlyCheck.check(disk: disk, against: history, in: folder)
  }

  private var blows: [Blow] { [round.blow] + round.others }

  /// The `--fault` that the blow of that number needs of a side, which it takes at its start.
  private func faults(of side: Blow.Side, in number: Int) -> [String] {
    guard blows.indices.contains(number), blows[number].faultySide == side else { return [] }
    return blows[number].fault.map { [$0] } ?? []
  }

  /// One blow after another, with a fresh secondary or with the one that is left.
  private mutating func suffer(_ number: Int, _ pair: ProtectedPair, _ load: Load) throws {
    let blow = blows[number]
    if number > 0, blow.fault != nil {
      // Armed at the start of who serves by now, or of who is about to join.
      if let secondary = pair.secondary { try kill(secondary, pair) }
      guard blow.faultySide == .secondary || pair.primary === armed else {
        return notes.append("no blow \(number + 1)")
      }
    }
    let before = pair.primary.count(of: "pair: fault:")
    if pair.secondary == nil {
      var faults = faults(of: .secondary, in: number)
      if number == 0, let fault = round.takeoverFault { faults.append(fault) }
      // Of when it serves.
      let next = blow.side == .primary ? self.faults(of: .primary, in: number + 1) : []
      let secondary = try pair.addSecondary(faults: faults + next)
      armed = next.isEmpty ? nil : secondary
    }
    if blow.fault == nil { try pair.waitUntilProtected() }
    try suffer(blow, pair, load, faultsBefore: blow.faultySide == .primary ? before : 0)
  }

  /// Lets one thing happen, and waits until one side serves alone, or both go on.
  private mutating func suffer(_ blow: Blow, _ pair: ProtectedPair, _ load: Load, faultsBefore: Int) throws {
    guard let secondary = pair.secondary else { throw HarnessError("there is no secondary") }
    let victim = blow.side == .primary ? pair.primary : secondary
    let faulty = blow.faultySide == .primary ? pair.primary : secondary
    if blow.fault == nil {
      usleep(UInt32(blow.after) * 1000)
    } else {
      let isReached = { faulty.count(of: "pair: fault:") > faultsBefore }
      _ = waitUntil(seconds: 20) { isReached() || pair.isProtected }
      if !waitUntil(seconds: 8, isReached) {
        notes.append("the point was not reached")
        try findWhoServes(pair, secondary)
        isOver = pair.secondary == nil
        if !isOver { try kill(faulty, pair) }
        return
      }
    }
    switch blow.kind {
    case .kill, .killWhilePeerAt: victim.signal(SIGKILL)
    case .stop: victim.signal(SIGSTOP)
    default: break
    }
    load.open(depth: 4)
    switch blow.kind {
    case .kill, .killAt, .killWhilePeerAt:
      try waitForSurvivor(of: blow, pair)
      guard try victim.waitForExit(timeout: 5) == -SIGKILL else { throw HarnessError("the victim was not killed") }
    case .stopAt where blow.isBeforeProtection:
      // It had nothing that could get lost: given up, it waits for a primary again, and the same one comes.
      usleep(1_000_000 * UInt32(Environment.patience))
      victim.signal(SIGCONT)
      try pair.waitUntilProtected()
      try findWhoServes(pair, secondary)
    case .stop, .stopAt:
      try waitForSurvivor(of: blow, pair)
      usleep(UInt32(blow.after % 300) * 1000)
      victim.signal(SIGCONT)
      // Who has been given up must know it, and end.
      try victim.wait(
        for: blow.side == .primary ? "pair: now fenced" : "before this side could take over", timeout: 10)
      _ = try victim.waitForExit(timeout: 10)
    case .spoilAt(let fault) where blow.side == .secondary && fault.contains("fullDisk"):
      // It can't take in the primary's disk, and says so: once that is written. Until then a pair stands that nobody could take over.
      try pair.waitForLoneliness(timeout: 20)
      guard try victim.waitForExit(timeout: 5) == 76 else { throw HarnessError("a secondary with a full disk goes on") }
    case .spoilAt where blow.isBeforeProtection:
      // As above: the same two try again.
      try pair.waitUntilProtected()
      notes.append("joined again")
    case .delayAt, .spoilAt:
      // A slow host takes longer to notice, too.
      usleep(1_500_000 * UInt32(Environment.patience))
      try findWhoServes(pair, secondary)
    }
  }

  /// Kills a side of a pair that stands, so that no fault of its comes later, beside another blow.
  private mutating func kill(_ side: Guest, _ pair: ProtectedPair) throws {
    notes.append("killed")
    side.signal(SIGKILL)
    if side === pair.primary { try pair.waitForTakeover() } else { try pair.waitForLoneliness() }
    guard try side.waitForExit(timeout: 5) == -SIGKILL else { throw HarnessError("it had ended before it was killed") }
  }

  private func waitForSurvivor(of blow: Blow, _ pair: ProtectedPair) throws {
    if blow.side == .primary { try pair.waitForTakeover() } else { try pair.waitForLoneliness() }
  }

  /// After something that a pair may survive together: one of them serves, or both are still a pair.
  private mutating func findWhoServes(_ pair: ProtectedPair, _ secondary: Guest) throws {
    let primaryServes = pair.primary.isRunning && !pair.primary.console.contains("pair: now fenced")
    let secondaryServes = secondary.isRunning && secondary.console.contains("pair: now alone")
    if primaryServes, secondaryServes { throw HarnessError("split: both sides serve") }
    guard primaryServes || secondaryServes else { throw HarnessError("neither side serves") }
    if secondaryServes {
      notes.append("replaced")
      pair.takeoverSeen()
    } else if pair.isAlone {
      notes.append("alone")
      try pair.waitForLoneliness()
    } else {
      notes.append("still a pair")
    }
  }
}
