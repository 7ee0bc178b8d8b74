import ArgumentParser
import CLinux
import Devices
import Glibc
import MiniVMM
import Pair
import Replication
import Synchronization

/// A secondary from its start to its end: one thread takes connections, one follows a primary, and the main thread answers
/// the control socket throughout and has the machine after a takeover.
final class SecondaryService: EventHandler {
  private enum Phase {
    case waiting
    case following(SecondarySide)
    /// It has taken over; the main thread has not heard of it yet.
    case tookOver(PrimarySide, Session, Protection?)
    case serving(PrimarySide, Session, Controller)
    /// The primary's guest has ended.
    case over
    case failed(any Error)
  }

  private let main: MainLoop
  private let settings: MachineSettings
  private let resources: FollowerResources
  private let listener: CInt
  private let address: String
  private let key: SharedKey
  /// Where its own secondary is after a takeover.
  private let next: Protection.Target?
  /// Of whichever machine there is.
  private let sink: SwitchedSink?
  /// An eventfd: a takeover is done.
  private let turned: CInt
  private let phase = Mutex(Phase.waiting)
  /// What was said last of somebody who is not followed.
  private let told = Mutex((line: "", time: UInt64(0)))
  /// The guest that it follows or serves.
  private let guest = Mutex<PairDescription?>(nil)

  init(
    _ main: MainLoop, _ settings: MachineSettings, _ resources: FollowerResources, listener: CInt, address: String,
    key: SharedKey, next: Protection.Target?
  ) throws {
    self.next = next
    self.main = main
    self.settings = settings
    self.resources = resources
    self.listener = listener
    self.address = address
    self.key = key
    sink = try SwitchedSink.open(settings.console, isOn: false)
    turned = lx_eventfd(0)
    guard turned >= 0 else { throw HostError(operation: "eventfd", errno: -turned) }
    _ = try main.events.register(turned, events: EPOLLIN.rawValue, handler: self, tag: 0)
  }

  func start() throws {
    tell("pair: waiting for a primary at \(address)")
    _ = try HostThread.start(name: "pair-listen") { [self] in listen() }
  }

  // MARK: Connections

  /// Says why somebody is not followed: not the same twice in a row, as whoever is refused tries again.
  /// - Parameter byAnybody: it may be anybody's doing: not more than a line a second.
  private func say(_ line: String, byAnybody: Bool = false) {
    let now = lx_monotonic_ns()
    let isNew = told.withLock { told in
      guard told.line != line, !byAnybody || now - told.time > 1_000_000_000 else { return false }
      told = (line, now)
      return true
    }
    if isNew { tell(line) }
  }

  /// The threads that it starts inherit its filter.
  private func listen() {
    AssembledMachine.restrict(resources.filters, .pair)
    var follower: HostThread?
    let reception = Reception(listener: listener, key: key)
    while let channel = reception.next(
      refused: { say("pair: refused a connection: \($0)", byAnybody: true) },
      watching: { successor == nil ? -1 : resources.beats.descriptor },
      ready: { if let successor { resources.beats.answer(.init(term: successor.term, hasLeft: false)) } })
    {
      guard let side = free() else {
        turnAway(channel)
        continue
      }
      // The last one has said that it is done.
      follower?.join()
      do throws(HostError) {
        follower = try HostThread.start(name: "pair-follow") { [self] in follow(channel, side) }
      } catch {
        follower = nil
        phase.withLock { $0 = .waiting }
        say("pair: refused a primary: \(error)")
        channel.refuse("\(error)")
      }
    }
  }

  /// What serves the clients, after a takeover.
  private var successor: PrimarySide? {
    phase.withLock { phase in
      switch phase {
      case .tookOver(let successor, _, _), .serving(let successor, _, _): successor
      default: nil
      }
    }
  }

  /// What follows a primary, or takes over from it at the moment.
  private var followed: SecondarySide? {
    phase.withLock { if case .following(let side) = $0 { side } else { nil } }
  }

  /// A primary that is not followed. If it has the same guest, one of both has been replaced.
  private func turnAway(_ channel: Channel) {
    guard let (term, bytes) = try? channel.receiveConfiguration(within: 1000),
      let caller = try? PairDescription(decoding: bytes)
    else { return channel.close() }
    let isSame = guest.withLock { $0?.isSameGuest(as: caller) == true }
    guard let successor else {
      say("pair: refused another primary")
      // Of the same guest: this one must not serve it too, even while nobody else is heard.
      let served = isSame ? followed?.term ?? 0 : 0
      return channel.refuse(
        "it follows another primary; stop that one, or give this one a secondary of its own", term: served)
    }
    guard isSame else {
      say("pair: refused another primary")
      return channel.refuse("it serves another guest; give this primary a secondary of its own")
    }
    if term > successor.term {
      successor.replaced(in: term)
      tell("pair: another has taken over; this guest ends")
      return main.stop()
    }
    say("pair: a primary of this guest came back and was told that it has been replaced")
    channel.refuse("it serves this guest since a takeover; start this side as its secondary", term: successor.term)
  }

  /// A side for a new primary, when there is none to follow.
  private func free() -> SecondarySide? {
    phase.withLock { phase in
      guard case .waiting = phase else { return nil }
      let side = SecondarySide(refreshes: resources.refreshes, beats: resources.beats, shrink: resources.shrink)
      side.onRole = { tell("pair: now \($0.rawValue): \($1)") }
      // All that a secondary has to tell: its guest ended where the primary's has not.
      side.tellOfPaths { tell("pair: \($0)") }
      side.tellProgress { [sink] in tell("pair: \($0); it said: …\(sink?.last ?? "")") }
      phase = .following(side)
      return side
    }
  }

  private func follow(_ channel: Channel, _ side: SecondarySide) {
    let kept = Mutex<(session: Session, successor: PrimarySide, protection: Protection?)?>(nil)
    let ending = side.follow(channel) { bytes in
      let description = try PairDescription(decoding: bytes)
      guest.withLock { $0 = description }
      side.mode = description.mode
      let (settings, parts) = try resources.machine(settings, description, side, next)
      let session = try Session(settings, main: main, sink: sink, kvm: resources.kvm)
      let (made, protection) = parts(session.assembled)
      made.successor.offer(session.assembled.memory, session.assembled.pair, made.backend)
      kept.withLock { $0 = (session, made.successor, protection) }
      return made
    }
    var made = kept.withLock { $0.take() }
    switch ending {
    case .tookOver:
      guard let made else { return }
      phase.withLock { $0 = .tookOver(made.successor, made.session, made.protection) }
      lx_eventfd_signal(turned)
    case .neverJoined(let why):
      made?.session.assembled.shutDown()
      made = nil
      phase.withLock { $0 = .waiting }
      say("pair: lost a primary before its first checkpoint: \(why); waiting for another at \(address)")
    case .refused(let why):
      made?.session.assembled.shutDown()
      made = nil
      phase.withLock { $0 = .waiting }
      say("pair: refused a primary: \(why)")
    case .guestEnded:
      tell("pair: the guest has ended")
      phase.withLock { $0 = .over }
      main.stop()
    case .gaveUp(let why):
      let failure = Failure("the pair ended before this side could take over: \(why)", .protocolError)
      phase.withLock { $0 = .failed(failure) }
      main.stop()
    }
  }

  // MARK: Main thread

  /// The machine is ours now.
  func ready(tag: UInt32, events: UInt32) {
    _ = lx_eventfd_take(turned)
    let taken = phase.withLock { phase -> (Session, Protection?)? in
      guard case .tookOver(let successor, let session, let protection) = phase else { return nil }
      phase = .serving(successor, session, session.controller(successor))
      return (session, protection)
    }
    do {
      try taken?.1?.start()
      try taken?.0.attach()
    } catch {
      phase.withLock { $0 = .failed(error) }
      main.stop()
    }
  }

  /// What the process's end means, after the main loop.
  func end() throws -> ExitCode {
    switch phase.withLock({ $0 }) {
    case .waiting, .following, .over: return ExitCode(ExitStatus.success.rawValue)
    case .tookOver(let successor, let session, _), .serving(let successor, let session, _):
      defer { successor.finish() }
      return try session.end(successor.turn)
    case .failed(let failure): throw failure
    }
  }

  func answer(_ request: ControlRequest, descriptor: CInt) -> ControlReply {
    let phase = phase.withLock { $0 }
    switch (phase, request.command) {
    case (.serving(_, _, let controller), _): return controller.answer(request, descriptor: descriptor)
    case (_, .stop):
      main.stop()
      return ControlReply(ok: true)
    case (.following(let side), .failover): return Self.failOver(side)
    case (.following(let side), .status): return Self.reply("following", side.status)
    case (.tookOver(let successor, _, _), .status): return Self.reply("running", successor.status)
    case (_, .status): return Self.reply("waiting", PairStatus(role: .joining, mode: nil, term: 1))
    case (.waiting, _): return .failure("this side waits for a primary; start one, or `stop` this side")
    default:
      return .failure("this side follows a primary: ask the primary for a \(request.command.rawValue)")
    }
  }

  private static func failOver(_ side: SecondarySide) -> ControlReply {
    do throws(PairRefusal) { try side.failOver() } catch { return .failure("\(error)") }
    return reply("running", side.status)
  }

  private static func reply(_ state: String, _ pair: PairStatus) -> ControlReply {
    var reply = ControlReply(ok: true)
    reply.state = state
    reply.pair = pair
    return reply
  }
}
