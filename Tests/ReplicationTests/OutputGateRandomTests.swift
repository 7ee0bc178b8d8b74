import Replication
import Synchronization
import Testing

@Suite("Output gate, at random") struct OutputGateRandomTests {
  /// What the rule says of each frame, from what the gate was told: by the letters of ``ReleasePolicyTests``.
  private struct Rule {
    struct Fact {
      let flow: UInt64
      let epoch: UInt64
      let given: UInt64
      let synchronisedBy: UInt64?
      var comparison = OutputFacts.Comparison.pending
    }

    let mode: ReplicationMode
    var epoch: UInt64 = 1
    var acknowledged: UInt64 = 0
    var received: UInt64 = 0
    /// By name, and the names that wait, by flow in the order of their coming.
    var facts: [UInt64: Fact] = [:]
    var waiting: [UInt64: [UInt64]] = [:]
    /// Those that may leave, and need not have yet.
    var due: Set<UInt64> = []
    /// Flows of which something left early, by epoch; those that were contradicted, and in which epoch.
    var early: [UInt64: Set<UInt64>] = [:]
    var distrusted: [UInt64: UInt64] = [:]
    /// How often it came to that, and how often nothing but distrust held a frame back.
    var earlyFrames: UInt64 = 0
    var contradictions: UInt64 = 0
    var distrustHeld = 0

    func leavesEarly(_ fact: Fact) -> Bool { fact.epoch > received && fact.comparison != .equal }

    func allows(_ fact: Fact) -> Bool {
      guard fact.given <= acknowledged else { return false }  // (a)
      guard leavesEarly(fact) else { return true }
      guard mode == .coloPlusPlus, fact.comparison == .pending else { return false }
      guard let since = fact.synchronisedBy, since <= received else { return false }  // (b)
      return distrusted[fact.flow] == nil
    }

    /// Lets go what may, in its flow's order (d): it leaves with the next flush.
    mutating func release() {
      for flow in waiting.keys {
        while let name = waiting[flow]?.first, let fact = facts[name], allows(fact) {
          waiting[flow]?.removeFirst()
          due.insert(name)
          guard leavesEarly(fact) else { continue }
          early[epoch, default: []].insert(flow)
          earlyFrames += 1
        }
        noteDistrust(flow)
      }
    }

    /// Whether nothing but that keeps the flow.
    private mutating func noteDistrust(_ flow: UInt64) {
      guard let name = waiting[flow]?.first, let fact = facts[name], let healed = distrusted.removeValue(forKey: flow)
      else { return }
      if allows(fact) { distrustHeld += 1 }
      distrusted[flow] = healed
    }

    mutating func contradict(_ flow: UInt64, in other: UInt64) {
      guard other > received, early[other]?.contains(flow) == true, distrusted[flow] ?? 0 < other else { return }
      distrusted[flow] = other
      contradictions += 1
    }
  }

  /// Random work against the rule itself: whatever leaves is allowed to, in its flow's order; what may leave does not wait; and
  /// nothing is lost.
  @Test(arguments: [1, 2, 3, 4, 5, 6, 7, 8] as [UInt64], [.colo, .coloPlusPlus] as [ReplicationMode])
  func random_keepsTheRule(seed: UInt64, mode: ReplicationMode) {
    var random = SeededGenerator(seed: seed)
    let left = Mutex<[UInt64]>([])
    let gate = OutputGate(
      mode: mode, frameLimit: 64, clock: { 0 },
      send: { frame in
        let name = (0..<8).reduce(UInt64(0)) { $0 | UInt64(frame[$1]) << (8 * UInt64($1)) }
        left.withLock { $0.append(name) }
        return true
      })
    gate.protect()
    var rule = Rule(mode: mode)
    var given: UInt64 = 0
    var admitted: [UInt64] = []
    var seen = 0
    for step in 0..<4000 as Range<UInt64> {
      switch random.next() % 10 {
      case 0...3:
        // The guest is given input, and never has it taken away.
        given = max(given, rule.acknowledged + random.next() % 3)
        let flow = random.next() % 4
        // Of a checkpoint that is received, of one that is on its way, or not known.
        let isMarked = mode == .coloPlusPlus && random.next() % 2 == 0
        let since = isMarked ? rule.epoch - min(rule.epoch, 1 + random.next() % 2) : nil
        let name = (0..<8).map { UInt8(truncatingIfNeeded: step >> (8 * UInt64($0))) }
        if case .admitted(let token) = unsafe name.withUnsafeBytes({
          unsafe gate.put($0, flow: FlowKey(test: flow), inputGiven: given, early: since.map { ($0, 1) })
        }) {
          #expect(token == UInt64(admitted.count))
          admitted.append(step)
          rule.facts[step] = Rule.Fact(flow: flow, epoch: rule.epoch, given: given, synchronisedBy: since)
          rule.waiting[flow, default: []].append(step)
        }
      case 4...5:
        guard let index = admitted.indices.suffix(100).randomElement(using: &random) else { continue }
        let result: OutputFacts.Comparison = random.next() % 8 == 0 ? .different : .equal
        rule.facts[admitted[index]]?.comparison = result
        gate.compared([UInt64(index)], result)
      case 6:
        rule.acknowledged += random.next() % 3
        gate.inputAcknowledged(rule.acknowledged)
      case 7:
        rule.received = rule.epoch - 1
        rule.distrusted = rule.distrusted.filter { $0.value > rule.received }
        gate.received(rule.received)
      case 8:
        // Of the epoch that runs, or the one before: the secondary's word may cross a cut.
        let (flow, other) = (random.next() % 4, rule.epoch - random.next() % 2)
        rule.contradict(flow, in: other)
        gate.contradict(FlowKey(test: flow), in: other)
      default:
        // In colo++ one checkpoint at a time is on its way.
        guard mode == .colo || rule.received == rule.epoch - 1 else { continue }
        #expect(gate.cut() == rule.epoch)
        rule.epoch += 1
      }
      rule.release()
      let isFlushed = random.next() % 3 == 0
      if isFlushed { gate.flush() }
      let now = left.withLock { $0 }
      for name in now[seen...] {
        guard rule.due.remove(name) != nil else {
          return #expect(Bool(false), "seed \(seed), step \(step): \(name) left")
        }
      }
      seen = now.count
      guard !isFlushed || rule.due.isEmpty else {
        return #expect(Bool(false), "seed \(seed), step \(step): waits for nothing")
      }
    }
    #expect(gate.counters.early == rule.earlyFrames && gate.counters.contradicted == rule.contradictions)
    if mode == .coloPlusPlus {
      #expect(rule.earlyFrames > 50 && rule.contradictions > 5 && rule.distrustHeld > 5, "it came to all of it")
    }
    gate.inputAcknowledged(.max)
    gate.flush()
    gate.received(gate.cut())
    let all = left.withLock { $0 }
    #expect(all.count == admitted.count)
    for flow in 0..<4 as Range<UInt64> {
      let names = all.filter { rule.facts[$0]?.flow == flow }
      #expect(names == names.sorted(), "seed \(seed): flow \(flow)")
    }
  }
}
