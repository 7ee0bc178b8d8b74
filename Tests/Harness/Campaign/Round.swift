/// Numbers that follow from a seed alone (SplitMix64), whatever the machine and the library's version.
public struct SeededGenerator {
  private var state: UInt64

  public init(seed: UInt64) { state = seed }

  public mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  public mutating func number(_ range: ClosedRange<Int>) -> Int {
    range.lowerBound + Int(next() % UInt64(range.count))
  }

  public mutating func one<T>(of list: [T]) -> T { list[number(0...list.count - 1)] }
}

/// What happens to one side of a pair: to who serves (primary), or to who follows.
public struct Blow: Equatable, Sendable, CustomStringConvertible {
  public enum Side: String, Sendable { case primary, secondary }
  public enum Kind: Equatable, Sendable {
    /// Signals from outside, at any time.
    case kill, stop
    /// A fault point of the side itself, and whether it leaves the side dead, asleep, or as it was.
    case killAt(String)
    case stopAt(String)
    case delayAt(String)
    /// The channel is spoilt or cut, or a disk full: both sides live, and one of them has to give way.
    case spoilAt(String)
    /// Killed from outside, while the other side stands at its fault point.
    case killWhilePeerAt(String)
  }

  /// Whom it happens to.
  public var side: Side
  public var kind: Kind
  /// Milliseconds after the pair is protected.
  public var after: Int

  public init(side: Side, kind: Kind, after: Int) {
    self.side = side
    self.kind = kind
    self.after = after
  }

  /// Whether it happens before there is anything that a secondary could take over: then who serves goes on alone, and
  /// whoever lives on tries again.
  public var isBeforeProtection: Bool {
    ["joining", "copyTaken", "firstCopy"].contains { fault?.hasPrefix("\($0)=") == true }
  }

  /// The `--fault` that it takes, if it takes one.
  public var fault: String? {
    switch kind {
    case .kill, .stop: nil
    case .killAt(let fault), .stopAt(let fault), .delayAt(let fault), .spoilAt(let fault), .killWhilePeerAt(let fault):
      fault
    }
  }

  /// Whose fault point that is.
  public var faultySide: Side {
    guard case .killWhilePeerAt = kind else { return side }
    return side == .primary ? .secondary : .primary
  }

  public var description: String { "\(side) \(fault ?? "\(kind) after \(after) ms")" }
}

/// What one round of a campaign does, from its seed alone.
public struct Round: Sendable {
  public var seed: UInt64
  public var mode: String
  public var blow: Blow
  /// What the side that is about to take over suffers, if anything.
  public var takeoverFault: String?
  /// What happens next, one after another, each time with a fresh secondary if the last one was lost.
  public var others: [Blow] = []
  /// How hard the clients work: connections of depth 1 and 4, and their longest pause in microseconds.
  public var load: (connections: Int, pause: Int)
  /// The lab guest's CPUs, and whether it also writes all over its memory.
  public var cpus: Int
  public var dirties: Bool
  /// Drawn for a guest that takes long to boot.
  private var more: [Blow] = []

  public init(seed: UInt64, modes: [String] = ["remus", "colo"]) {
    self.seed = seed
    var chance = SeededGenerator(seed: seed)
    // Always drawn, so that the rest of a round does not depend on the modes asked for.
    let mode = chance.number(0...1)
    self.mode = modes[mode % modes.count]
    blow = Self.blow(chance.one(of: [.primary, .primary, .secondary]), &chance)
    if blow.side == .primary, chance.number(0...3) == 0 {
      let point = chance.one(of: ["takeoverBegun", "takeoverDisks", "takeoverServed"])
      takeoverFault = "\(point)=delay:\(chance.number(1...300))"
    }
    var second = chance.number(0...1) == 0 ? Self.signal(&chance) : nil
    load = (chance.number(4...12), chance.one(of: [1000, 5000, 20_000, 20_000]))
    cpus = chance.one(of: [1, 1, 2])
    dirties = chance.number(0...3) == 0
    // Of a first copy a pair survives the secondary's death, and whatever leaves the primary alive.
    if chance.number(0...7) == 0 { blow.moveIntoFirstCopy(passage: chance.number(1...4)) }
    let isAtAPoint = chance.number(0...1) == 0
    let other = Self.blow(second?.side ?? .primary, &chance)
    // A survivor's points are first passed with a secondary of its own. Those of a primary that lost its secondary were passed
    // before.
    if second != nil, isAtAPoint, second?.side == .secondary || blow.side == .primary { second = other }
    // Only there is output that is told before it leaves. At a primary's first passages its guest has yet to come to rest.
    let isToldEarly = chance.number(0...3) == 0
    let passage = chance.number(20...200)
    if self.mode == "colo++", isToldEarly, case .killAt = blow.kind, blow.side == .primary {
      blow.kind = .killAt("toldEarly=kill@\(passage)")
    }
    if let second { others = [second] }
    more = (0..<4).map { _ in
      let (signal, other) = (Self.signal(&chance), Self.blow(chance.one(of: [.primary, .secondary]), &chance))
      return chance.number(0...1) == 0 ? signal : other
    }
  }

  private static func signal(_ chance: inout SeededGenerator) -> Blow {
    Blow(
      side: chance.one(of: [.primary, .primary, .secondary]), kind: chance.one(of: [.kill, .kill, .stop]),
      after: chance.number(0...1200))
  }

  /// Points at which a side has something to lose, and a peer that can go on.
  public static let primaryPoints = [
    "paused", "saved", "cut", "resumed", "pagesSent", "checkpointSent", "receivedHeard", "released", "diskTold",
  ]
  public static let secondaryPoints = [
    "joining", "pagesStaged", "checkpointWhole", "receivedSaid", "rolledBack", "loaded", "diskWritten",
  ]

  private static func blow(_ side: Blow.Side, _ chance: inout SeededGenerator) -> Blow {
    let kind = chance.number(0...99)
    let after = chance.number(0...1200)
    let points = side == .primary ? primaryPoints : secondaryPoints
    let point = chance.one(of: points)
    // The primary's first checkpoint must have been received: before it, nobody can take over.
    // Disks change often, and before it too.
    let range = point.hasPrefix("disk") ? 40...80 : side == .primary ? 2...9 : 1...9
    let passage = point == "joining" ? 1 : chance.number(range)
    func fault(_ action: String) -> String { "\(point)=\(action)@\(passage)" }
    let delay = chance.number(1...300)
    let spoilt = chance.one(of: ["corrupt", "short", "cut", "fullDisk"])
    let how: Blow.Kind =
      switch kind {
      case 0..<30: .kill
      case 30..<42: .stop
      case 42..<74: .killAt(fault("kill"))
      case 74..<82: .stopAt(fault("stop"))
      case 82..<92: .delayAt(fault("delay:\(delay)"))
      default: .spoilAt(fault(spoilt))
      }
    return Blow(side: side, kind: how, after: after)
  }

  /// A round with Linux boots for longer than it suffers: it takes more blows. redis ends when its file can't be written, as it
  /// promises with `appendfsync always`: who serves has its channel cut instead. It also writes less often than the lab's journal. Where its kernel is
  /// interpreted it answers some dozens of requests a second: who asks for more only waits for himself.
  mutating func suitLinux() {
    func suited(_ blow: Blow) -> Blow {
      guard let fault = blow.fault else { return blow }
      let parts = fault.split(separator: "@")
      let passage = parts.count == 2 ? Int(parts[1]) ?? 1 : 1
      var suited = fault.hasPrefix("disk") && parts.count == 2 ? "\(parts[0])@\(max(1, passage / 8))" : fault
      if blow.side == .primary { suited = suited.replacing("fullDisk", with: "cut") }
      return blow.with(fault: suited)
    }
    load = (min(load.connections, 6), 200_000 + load.pause)
    blow = suited(blow)
    others = (others + more).map(suited)
  }

  public var description: String {
    let faults = [blow.description, takeoverFault.map { "secondary \($0)" }] + others.map { "then \($0)" }
    let guest = (cpus > 1 ? ", \(cpus) CPUs" : "") + (dirties ? ", dirtying" : "")
    return "\(mode), \(load.connections) connections\(guest), \(faults.compactMap(\.self).joined(separator: ", "))"
  }
}

extension Blow {
  /// The same at another fault point.
  func with(fault: String) -> Blow {
    var blow = self
    blow.kind =
      switch kind {
      case .kill, .stop: kind
      case .killAt: .killAt(fault)
      case .stopAt: .stopAt(fault)
      case .delayAt: .delayAt(fault)
      case .spoilAt: .spoilAt(fault)
      case .killWhilePeerAt: .killWhilePeerAt(fault)
      }
    return blow
  }

  /// Has a fault at a point happen in the first copy instead, if both or the primary could live on then.
  mutating func moveIntoFirstCopy(passage: Int) {
    guard let action = fault?.split(separator: "=").last?.split(separator: "@").first else { return }
    switch (side, kind) {
    case (.primary, .delayAt), (.primary, .spoilAt): self = with(fault: "firstCopy=\(action)@\(passage)")
    case (.secondary, .killAt), (.secondary, .stopAt), (.secondary, .delayAt), (.secondary, .spoilAt):
      self = with(fault: "copyTaken=\(action)@\(50 * passage)")
    default: break
    }
  }
}
