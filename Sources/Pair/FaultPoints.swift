internal import CLinux
public import Devices
internal import Glibc
internal import Replication
internal import Synchronization

/// Where a fault can be made to happen: one point in each phase of a pair's life.
public enum FaultPoint: String, CaseIterable, Sendable {
  // The primary's.
  case firstCopy, paused, saved, cut, resumed, pagesSent, checkpointSent, receivedHeard, released, diskTold
  // … with output that was told to leave early, and has not.
  case toldEarly
  // The secondary's.
  case joining, copyTaken, pagesStaged, checkpointWhole, receivedSaid, rolledBack, loaded, diskWritten
  case takeoverBegun, takeoverDisks, takeoverServed
}

/// A fault that a test asks for: what happens at the `passage`th passage of a point. As text: `POINT=ACTION[:ARG][@N]`.
public struct Fault: Equatable, Sendable {
  public enum Action: Equatable, Sendable {
    /// SIGKILL and SIGSTOP to itself.
    case kill, stop
    /// The channel ends, both directions.
    case cut
    /// Milliseconds for which the thread that passes stands still.
    case delay(UInt32)
    /// What is sent next has one bit changed, or ends in the middle and the channel with it.
    case corrupt, short
    /// The next change of a disk fails for want of room.
    case fullDisk
  }

  public var point: FaultPoint
  public var action: Action
  public var passage: Int

  /// Nil unless the text is a fault.
  public init?(_ text: String) {
    let halves = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard halves.count == 2, let point = FaultPoint(rawValue: String(halves[0])) else { return nil }
    let (what, number) = Self.halves(halves[1], at: "@")
    let (name, argument) = Self.halves(what, at: ":")
    let actions: [String: Action] = [
      "kill": .kill, "stop": .stop, "cut": .cut, "corrupt": .corrupt, "short": .short, "fullDisk": .fullDisk,
    ]
    if name == "delay", let argument, let milliseconds = UInt32(argument), milliseconds <= 60_000 {
      action = .delay(milliseconds)
    } else if argument == nil, let action = actions[String(name)] {
      self.action = action
    } else {
      return nil
    }
    guard let passage = number.map({ Int($0) }) ?? 1, passage > 0 else { return nil }
    self.point = point
    self.passage = passage
  }

  private static func halves(_ text: Substring, at mark: Character) -> (Substring, Substring?) {
    guard let place = text.firstIndex(of: mark) else { return (text, nil) }
    return (text[..<place], text[text.index(after: place)...])
  }
}

/// The faults of this process, for tests of what survives them. Without any, a point costs one branch.
public enum FaultPoints {
  private struct State {
    var faults: [Fault] = []
    var passages: [FaultPoint: Int] = [:]
    var channel: Channel?
    var failsNextWrite = false
    /// What is to be done, for the thread that does it.
    var wanted: [(Fault.Action, UInt64)] = []
    var taken: UInt64 = 0
  }

  private static let isArmed = Atomic(false)
  private static let state = Mutex(State())
  /// How many faults have been done.
  private static let done = Atomic<UInt64>(0)
  private static let wake = Atomic<CInt>(-1)

  /// Arms these faults; once, before there are other threads.
  public static func install(_ faults: [Fault]) throws(HostError) {
    guard !faults.isEmpty else { return }
    let wake = lx_eventfd(0)
    guard wake >= 0 else { throw HostError(operation: "eventfd", errno: -wake) }
    Self.wake.store(wake, ordering: .relaxed)
    state.withLock { $0.faults = faults }
    // Those that pass may not be allowed to make the system calls that a fault takes.
    _ = try HostThread.start(name: "faults") {
      while true {
        HostThread.waitReadable(wake)
        _ = lx_eventfd_take(wake)
        perform()
      }
    }
    isArmed.store(true, ordering: .releasing)
  }

  /// The channel that faults end or damage from here on.
  static func use(_ channel: Channel) {
    guard isArmed.load(ordering: .relaxed) else { return }
    state.withLock { $0.channel = channel }
  }

  /// Any thread: it stands here until the fault, if there is one for this passage, has happened.
  /// - Parameter prepare: brings about the state that the point stands for, where nothing else has to.
  static func pass(_ point: FaultPoint, after prepare: () -> Void = {}) {
    guard isArmed.load(ordering: .relaxed) else { return }
    prepare()
    passArmed(point)
  }

  /// Whether a change of a disk is to fail now, as on a full file system.
  static var failsDiskWrite: Bool {
    guard isArmed.load(ordering: .relaxed) else { return false }
    return state.withLock { state in
      defer { state.failsNextWrite = false }
      return state.failsNextWrite
    }
  }

  private static func passArmed(_ point: FaultPoint) {
    let ticket: UInt64? = state.withLock { state in
      let passage = state.passages[point, default: 0] + 1
      state.passages[point] = passage
      guard let fault = state.faults.first(where: { $0.point == point && $0.passage == passage }) else { return nil }
      state.taken += 1
      state.wanted.append((fault.action, state.taken))
      return state.taken
    }
    guard let ticket else { return }
    lx_eventfd_signal(wake.load(ordering: .relaxed))
    while done.load(ordering: .acquiring) < ticket {}
  }

  private static func perform() {
    let (wanted, channel) = state.withLock { state in
      defer { state.wanted = [] }
      return (state.wanted, state.channel)
    }
    for (action, ticket) in wanted {
      let line = Array("minivmm: pair: fault: \(action)\n".utf8)
      _ = unsafe line.withUnsafeBytes { unsafe lx_write(2, $0.baseAddress, $0.count) }
      switch action {
      case .kill: _ = kill(getpid(), SIGKILL)
      case .stop: _ = kill(getpid(), SIGSTOP)
      case .cut: channel?.close()
      case .delay(let milliseconds): usleep(milliseconds * 1000)
      case .corrupt: channel?.damageNext(.flippedBit)
      case .short: channel?.damageNext(.cutShort)
      case .fullDisk: state.withLock { $0.failsNextWrite = true }
      }
      done.store(ticket, ordering: .releasing)
    }
  }
}
