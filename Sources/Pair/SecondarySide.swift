internal import CLinux
public import Devices
internal import GuestMemory
public import MiniVMM
public import Replication
internal import StateCodec
internal import Synchronization

/// The following side of a pair: takes in checkpoints and input, runs its guest along (in colo), and takes over when the
/// primary is lost.
///
/// Threads: the guest's device thread (``PairTraffic``), the caller's, which receives, one that loads checkpoints and controls
/// the machine meanwhile, one that sends, one for signs of life.
public final class SecondarySide: PairTraffic {
  /// A machine of the primary's shape, not loaded and not started, with RAM that rolls back and dirty tracking.
  public struct Parts: Sendable {
    public var machine: Machine
    public var backend: PairBackend?
    public var disks: [FollowerDisk]
    /// The card's address and tap, to announce after a takeover.
    public var mac: [UInt8]
    public var tap: (any FrameBackend)?
    /// What serves the guest's clients after a takeover; ``PairBackend/gate`` is its gate.
    public var successor: PrimarySide
    public var registers: PairRegisters
    public init(
      machine: Machine, backend: PairBackend?, disks: [FollowerDisk], mac: [UInt8], tap: (any FrameBackend)?,
      successor: PrimarySide, registers: PairRegisters
    ) {
      self.successor = successor
      self.registers = registers
      self.machine = machine
      self.backend = backend
      self.disks = disks
      self.mac = mac
      self.tap = tap
    }
  }

  /// How the pair's life ended for this side.
  public enum Ending: Equatable, Sendable {
    /// It serves the clients now.
    case tookOver
    /// It had no whole checkpoint when the primary went: nothing is lost with this side's machine.
    case neverJoined(String)
    /// This side can't follow that primary, which has heard why.
    case refused(String)
    /// The primary's guest has ended: nothing to take over.
    case guestEnded
    /// The guest lives elsewhere, or this side's can't live on.
    case gaveUp(String)
  }

  struct State {
    var mode = ReplicationMode.remus
    var loaded: UInt64 = 0
    /// Why a load failed half-way: this machine can never run again.
    var broken: String?
    var demanded = false
    /// Its tap has gone: it could not serve the clients.
    var isTapLost = false
    var registers: PairRegisters?
    var unconfirmed = RecentOutput()
    /// It reads no more of what the primary says, but waits for it to hear that it is replaced.
    var handsOver = false
    var channel: Channel?
  }

  /// The primary's, once its description has come.
  public var mode: ReplicationMode {
    get { state.withLock { $0.mode } }
    set { state.withLock { $0.mode = newValue } }
  }
  /// Told of every new role, and why.
  public var onRole: @Sendable (Role, String) -> Void {
    get { peer.onRole }
    set { peer.onRole = newValue }
  }
  /// Whether KVM must be made to forget translations after a load (``HostProbe/translationsGoStale()``).
  let refreshes: Bool
  private let beats: BeatPath
  let shrink: Shrink
  let shrinker: Mutex<ShrinkPolicy>
  let state = Mutex(State())
  let peer: PeerWatch
  let meter = PairMeter()
  public let early = EarlyWatch()
  public let turn = MachineTurn()
  /// Of what its guest says, for the primary.
  let coder = Mutex<PieceCoder?>(nil)
  private let loader = Mutex<HostThread?>(nil)
  let strays = Mutex(StrayInput())

  /// - Parameter beats: the second way of signs of life.
  public init(refreshes: Bool, beats: BeatPath, shrink: Shrink = Shrink()) {
    self.beats = beats
    self.shrink = shrink
    shrinker = Mutex(ShrinkPolicy(shrink.target))
    self.refreshes = refreshes
    peer = PeerWatch(role: .joining)
  }

  public var role: Role { peer.role }
  /// Its primary's, or the next one as soon as it takes over.
  public var term: UInt64 { peer.term }
  public var loaded: UInt64 { state.withLock { $0.loaded } }

  // MARK: PairTraffic, device thread

  public func input(_ number: UInt64, _ frame: UnsafeRawBufferPointer) {}
  public var hasRoomForInput: Bool { true }
  public func gateIsFull() {}
  public func started(_ frame: UnsafeRawBufferPointer) {}
  public func leavesEarly(_ frame: UnsafeRawBufferPointer) -> UInt64? { nil }
  public func flush() {}
  public func outputEnded() { state.withLock({ $0.channel })?.flush() }

  // MARK: Following

  /// Follows a primary over a channel whose handshake is done, to the end. Blocks.
  /// - Parameter make: makes the machine that the primary describes; the primary hears why when it can't.
  public func follow(_ channel: Channel, make: ([UInt8]) throws -> Parts) -> Ending {
    let made: Parts
    do {
      let (term, description) = try channel.receiveConfiguration()
      made = try make(description)
      peer.change(.laterTerm(term))
      try channel.admit()
    } catch {
      channel.refuse("\(error)")
      return .refused("\(error)")
    }
    state.withLock { state in
      state.channel = channel
      state.registers = made.registers
    }
    early.begin(channel)
    made.backend?.heed(early)
    coder.withLock { $0 = PieceCoder(channel) }
    FaultPoints.use(channel)
    peer.begin(channel, beats)
    var threads: [HostThread] = []
    do throws(HostError) {
      threads.append(try HostThread.start(name: "pair-send") { _ = channel.runSender() })
      threads.append(
        try HostThread.start(name: "pair-tick") { [self] in
          peer.run(channel) {
            if !state.withLock({ $0.handsOver }) { channel.endReceiving() }
          } onBeat: {
            guard let tap = made.tap else { return }
            let isTapLost = strays.withLock { strays in
              strays.drain(tap, within: 1_000_000)
              return strays.isTapLost
            }
            if isTapLost { state.withLock { $0.isTapLost = true } }
          }
        })
    } catch {
      peer.end()
      channel.close()
      for thread in threads { thread.join() }
      made.machine.stop()
      return .neverJoined("\(error)")
    }
    var why = "the primary is lost"
    var (isLoss, guestEnded) = (true, false)
    do {
      let queue = try CheckpointQueue()
      defer { queue.end() }
      try receive(channel, queue, made)
    } catch {
      why = "\(error)"
      isLoss = error is ChannelError || error is FollowError
      if case FollowError.dismissed(guestEnded: true) = error { guestEnded = true }
      if case FollowError.tapLost = error { isLoss = false }
      // Unless it is the channel that has ended, the primary lives: it must see that it is not followed any more.
      switch error {
      case ChannelError.closed, ChannelError.system, FollowError.demanded: break
      case FollowError.tapLost:
        peer.change(.withdrew)
        try? channel.send(.admission(refusal: "its tap has gone", term: 0))
        awaitEnd(of: channel, nil)
        channel.close()
      default: channel.close()
      }
    }
    // What it holds whole, it loads first.
    loader.withLock { $0.take() }?.join()
    // The end of a connection is not the end of the primary.
    let isAsked = state.withLock { $0.demanded || $0.broken != nil }
    peer.takeIn()
    if role == .secondary, peer.hasLeft || !isAsked && !peer.isDeadWithoutChannel() {
      peer.change(.peerSaidFarewell)
      why = "\(FollowError.dismissed(guestEnded: false))"
    }
    let hasPrimary = state.withLock { state in
      state.handsOver = state.demanded
      return state.demanded
    }
    let mayTakeOver = peer.mayTakeOver
    peer.lose()
    peer.end()
    if !mayTakeOver {
      why = "this side was stopped for a while itself, and the primary may go on alone; start it again"
    }
    let broken = state.withLock { $0.broken }
    if let broken { why = "a checkpoint could not be loaded: \(broken)" }
    let change = mayTakeOver && broken == nil ? peer.change(.peerLost) : nil
    // A primary that only slept must learn that it has been replaced.
    if let change, change.to == .takingOver {
      peer.replaced()
      try? channel.send(.heartbeat(term: peer.term, time: 0))
      for _ in 0..<20 where !channel.isDrained { HostThread.waitReadable(-1, timeoutMilliseconds: 1) }
      if hasPrimary { awaitEnd(of: channel, made.backend?.log) }
    }
    channel.close()
    for thread in threads { thread.join() }
    state.withLock { $0.channel = nil }
    guard change?.to == .takingOver else {
      made.machine.stop()
      if loaded == 0, isLoss, broken == nil { return .neverJoined(why) }
      return guestEnded ? .guestEnded : .gaveUp(why)
    }
    return takeOver(made, lastHeard: channel.lastHeard)
  }

  /// Until a primary that lives has heard that it is replaced, and closes; not for long. What it lets out early until then, it tells
  /// here; and what comes for its guest, that has not answered, is this one's.
  func awaitEnd(of channel: Channel, _ log: InputLog?) {
    let deadline = lx_monotonic_ns() + 500_000_000
    while lx_monotonic_ns() < deadline, let message = try? channel.receive(within: 100) {
      switch message {
      case .early(_, let epoch, let outputs): if early.add(outputs, epoch: epoch) == nil { return }
      case .input(_, let number, let frame): try? log?.append(number, frame)
      default: break
      }
    }
  }

  private func receive(_ channel: Channel, _ queue: CheckpointQueue, _ made: Parts) throws {
    FaultPoints.pass(.joining)
    let pageCount = made.machine.memory.pageCount
    let sync = try DiskSync(made.disks)
    defer { sync.end() }
    let thread = try HostThread.start(name: "pair-load") { [self] in load(made, queue, channel, sync) }
    loader.withLock { $0 = thread }
    // Its guest's CPUs must not keep this side from what it owes. Threads that were started before are not preferred.
    if mode.compares { lx_thread_prefer() }
    var stage = queue.stage()
    var received: UInt64 = 0
    var lastGiven: UInt64 = 0
    var owed: UInt64 = 0
    var hasSaid = false
    while true {
      switch try channel.receive() {
      case .input(_, let number, let frame):
        guard let backend = made.backend else { throw StateError.invalid("input for a machine without a card") }
        try backend.log.append(number, frame)
        meter.loggedInput(number)
        owed = number
      case .started(_, let epoch, let frame):
        made.backend?.primaryStarted(frame, epoch: epoch)
        hasSaid = true
      case .disk(let index, let epoch, let position, let count, let zero, let bytes):
        try change(made, index, epoch, position, count, zero, bytes, isCopy: received == 0)
      case .pages(let epoch, let run):
        let memory = made.machine.memory
        try unsafe PageRun.decode(run, pageCount: pageCount) { page, contents throws(StateError) in
          // The first copy goes straight into RAM that nobody uses yet.
          if epoch == 0, received == 0, case .whole(let bytes) = unsafe contents {
            _ = unsafe memory.setCheckpointPage(page, bytes)
            return
          }
          guard page > stage.pages.last ?? -1 else { throw .invalid("page \(page) out of turn") }
          do {
            let place = unsafe try stage.add(page)
            switch unsafe contents {
            case .whole(let bytes): unsafe place.copyMemory(from: bytes)
            case .changes(let changes):
              unsafe queue.copy(page, from: memory, to: place)
              unsafe PageRun.apply(changes, to: place)
            }
          } catch { throw .invalid("\(error)") }
        }
        FaultPoints.pass(epoch > 0 ? .pagesStaged : .copyTaken)
      case .checkpoint(
        let epoch, let pages, let given, let mappings, let addresses, let held, let wait, let search, let saved):
        guard epoch == received + 1 || received == 0, epoch > 0, pages == UInt64(stage.pages.count),
          let given = given.first, given >= lastGiven
        else {
          throw StateError.invalid("checkpoint \(epoch) with \(pages) pages after \(received)")
        }
        // The primary sends none before: the end of the channel alone would make both serve.
        guard peer.isHeardByBoth else { throw StateError.invalid("a checkpoint before a sign of life by UDP") }
        // What can be known before the load: after RECEIVED, output leaves that no survivor knows if the load fails.
        try made.machine.check(saved)
        try made.backend?.check(given: given, mappings: mappings, addresses: addresses)
        lastGiven = given
        FaultPoints.pass(.checkpointWhole)
        // Whole: from here on it is what this side goes by.
        received = epoch
        early.received(epoch)
        queue.put(
          WholeCheckpoint(
            epoch: epoch, given: given, mappings: mappings, addresses: addresses, held: held, wait: wait,
            search: search, state: saved,
            stage: stage))
        try channel.send(.received(epoch: epoch))
        FaultPoints.pass(.receivedSaid)
        stage = queue.stage()
      case .heartbeat(let term, let time):
        peer.arrived()
        peer.heard(time)
        peer.change(.laterTerm(term))
      case .farewell(let guestEnded):
        peer.change(.peerSaidFarewell)
        throw FollowError.dismissed(guestEnded: guestEnded)
      case .takeOver: if role == .secondary, peer.mayTakeOver { state.withLock { $0.demanded = true } }
      case .early(_, let epoch, let outputs):
        guard let report = early.add(outputs, epoch: epoch) else {
          throw StateError.invalid("more output let out early than may be")
        }
        say(report, channel)
        hasSaid = hasSaid || !report.isEmpty
      case .ask(_, let epoch, let output):
        guard let report = early.asked(output, epoch: epoch) else {
          throw StateError.invalid("more output asked for than may be")
        }
        say(report, channel)
        hasSaid = hasSaid || !report.isEmpty
      case .configuration, .inputAcknowledged, .output, .received, .loaded, .admission, .contradicted, .piece:
        throw ChannelError.notAuthentic
      }
      // Once for all input that has come by now.
      if owed > 0, !channel.hasReceived || owed % 64 == 0 {
        try channel.send(.inputAcknowledged(card: 0, count: owed))
        made.backend?.signal()
        owed = 0
        hasSaid = false
      } else if hasSaid, !channel.hasReceived {
        channel.flush()
        hasSaid = false
      }
      // Whole messages only: what was read counts.
      let (isTapLost, isDemanded) = state.withLock { ($0.isTapLost, $0.demanded) }
      if isTapLost { throw FollowError.tapLost }
      if isDemanded { throw FollowError.demanded }
    }
  }

  private func change(
    _ parts: Parts, _ index: UInt8, _ epoch: UInt64, _ position: UInt64, _ count: UInt64, _ zero: UInt8,
    _ bytes: [UInt8], isCopy: Bool
  ) throws {
    guard index < parts.disks.count else { throw StateError.invalid("disk \(index)") }
    let disk = parts.disks[Int(index)]
    let kind: DiskChange.Kind =
      count == 0 ? .write(bytes) : zero == 0 ? .discard(count: count) : .zero(count: count, unmap: zero == 2)
    let change = DiskChange(position: position, kind: kind)
    if epoch == 0, isCopy {
      guard disk.fits(change) else { throw StateError.invalid("a change outside disk \(index)") }
      let error = disk.make(change)
      guard error == 0 else { throw HostError(operation: "writing the disk", errno: error) }
    } else if !disk.keep(change, epoch: epoch) {
      throw StateError.invalid("a change outside disk \(index), or more than can be kept")
    }
  }
}
