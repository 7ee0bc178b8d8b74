internal import CLinux
public import Devices
internal import Glibc
public import GuestMemory
public import MiniVMM
public import Replication
internal import Synchronization
internal import VirtioLayout

/// The serving side of a pair: takes checkpoints, tells input and disk changes, and lets output out by the rule.
///
/// Threads: the guest's device thread (``PairTraffic``), one for checkpoints, two of the channel. The machine is controlled
/// by the checkpoint thread from ``protect(_:)`` until the secondary is lost, and by the caller otherwise.
public final class PrimarySide: PairTraffic {
  /// What the engine works on. Made before the machine is, because the machine's devices hold parts of it.
  public struct Options: Sendable {
    public var mode: ReplicationMode
    /// Longest time between checkpoints, in nanoseconds.
    public var period: UInt64
    /// How long output may wait for the secondary's before a checkpoint is asked for.
    public var patience: UInt64
    public init(mode: ReplicationMode, period: UInt64 = 100_000_000, patience: UInt64 = 20_000_000) {
      self.mode = mode
      self.period = period
      self.patience = patience
    }
  }

  /// Comparing is serialised here; lock order: a back end's, then this.
  struct Comparison: ~Copyable {
    var comparator = Comparator()
    /// The checkpoint that the current epoch began with: only what stems from it can be compared.
    var base: UInt64 = 0
  }

  struct State {
    /// The newest epoch that has ended, and the newest whose checkpoint the secondary has.
    var epoch: UInt64 = 0
    var received: UInt64 = 0
    var channel: Channel?
    var isProtecting = false
    /// The guest has ended: the secondary is to hear of it.
    var isEnding = false
    /// Before the first cut: what is told of disks belongs to their first copy.
    var isCopying = true
    /// What was told of disks since the first cut.
    var backlog = DiskBacklog()
    var wanted: CheckpointCause?
    /// The guest has no network here, and when the secondary was last asked to take it over, in monotonic nanoseconds.
    var isTapLost = false
    var askedToTakeOver: UInt64?
    /// Why the last secondary was lost; empty before.
    var loss = ""
    /// Input so far, in bytes, at the cuts of the checkpoints that the secondary has not loaded yet, and of the last that it has.
    var cuts: [(epoch: UInt64, bytes: UInt64)] = []
    var inputLoaded: UInt64 = 0
    /// When the secondary had loaded the newest checkpoint.
    var loadedAt: UInt64 = 0
    var loaded: UInt64 = 0
  }

  public let options: Options
  public let gate: OutputGate
  let comparison = Mutex(Comparison())
  let state = Mutex(State())
  let peer = PeerWatch(role: .alone)
  let meter = PairMeter()
  let early = EarlyTelling()
  let markings = Markings()
  /// Of a survivor: what clients had been told early.
  let heritage = Mutex<EarlyWatch?>(nil)
  /// What checkpoints hold of what replies are made of; none where output does not leave early.
  private let sourcePages = Mutex<SourcePages?>(nil)
  let registers = Mutex<PairRegisters?>(nil)
  public let turn = MachineTurn()
  private let receivingEnded = Atomic(false)
  /// Bytes of input after which a checkpoint is taken: a quarter of what a secondary keeps.
  private static let inputLimit: UInt64 = 16 << 20
  /// Bytes of input that the secondary keeps, and that wait to be sent, beyond which no more is taken: it can keep 64 MiB, and who
  /// sends more than it can load must not end protection.
  private static let keptLimit: UInt64 = 48 << 20
  private static let queueLimit = 64 << 20
  private let inputTotal = Atomic<UInt64>(0)
  private let isFlooded = Atomic(false)
  /// Something was told of output that the secondary should know soon.
  let isAwaited = Atomic(false)
  private let inputBytes = Atomic<UInt64>(0)
  /// Messages of the secondary's after which what they let out is sent, if not before.
  private static let heardTogether = 16
  /// The newest frame of input that was sent.
  private let inputSent = Atomic<UInt64>(0)
  /// An eventfd: there is something for the checkpoint thread.
  let wake: CInt

  public init(_ options: Options, tap: (any FrameBackend)?) throws(HostError) {
    self.options = options
    wake = lx_eventfd(0)
    guard wake >= 0 else { throw HostError(operation: "eventfd", errno: -wake) }
    gate = OutputGate(
      mode: options.mode, clock: { lx_monotonic_ns() },
      isTold: { [early] told in
        guard early.isOnItsWay(told) else { return false }
        FaultPoints.pass(.toldEarly)
        return true
      },
      mayTransmit: { [peer] in peer.mayTransmit },
      send: { frame in
        tap.map { tap in TapOutput.send(frame, to: tap) } ?? true
      })
    peer.fence(by: { [weak gate] in gate?.fence() })
  }

  deinit { lx_close(wake) }

  /// Serves in `term` from now on: its guest was a secondary's, which has taken over.
  func take(term: UInt64, early: EarlyWatch) {
    peer.take(term: term)
    heritage.withLock { $0 = early }
  }

  /// Told of every new role, and why.
  public var onRole: @Sendable (Role, String) -> Void {
    get { peer.onRole }
    set { peer.onRole = newValue }
  }

  /// Asks for a checkpoint soon.
  public func requestCheckpoint(_ cause: CheckpointCause) {
    state.withLock { if $0.wanted == nil { $0.wanted = cause } }
    lx_eventfd_signal(wake)
  }

  /// Offers the guest to get by with fewer CPUs and, in a mode in which output may leave early, to say what its replies are made
  /// of. Before the guest starts, or goes on.
  public func offer(_ memory: GuestMemory, _ registers: PairRegisters, _ backend: PairBackend?) {
    self.registers.withLock { $0 = registers }
    guard options.mode == .coloPlusPlus else { return registers.offer(PairFeature.activeCPUs) }
    let pages = SourcePages(memory)
    sourcePages.withLock { $0 = pages }
    registers.offer(PairFeature.sources | PairFeature.activeCPUs)
    backend?.useSources(memory, registers, pages)
  }

  // MARK: PairTraffic, device thread

  public func input(_ number: UInt64, _ frame: UnsafeRawBufferPointer) {
    guard let channel = state.withLock({ $0.channel }) else { return }
    if options.mode.compares, frame.count > 12 {
      let bytes = unsafe UnsafeRawBufferPointer(rebasing: frame[12...])
      comparison.withLock { comparison in
        unsafe bytes.withMemoryRebound(to: UInt8.self) {
          unsafe comparison.comparator.input(Span(_unsafeElements: $0))
        }
      }
    }
    meter.sentInput(number)
    if inputTotal.wrappingAdd(UInt64(frame.count), ordering: .relaxed).newValue & 0xffff < UInt64(frame.count) {
      judgeFlood(channel)
    }
    inputSent.store(number, ordering: .releasing)
    // The secondary keeps input until the next checkpoint, and not without end.
    if inputBytes.wrappingAdd(UInt64(frame.count), ordering: .relaxed).newValue > Self.inputLimit {
      inputBytes.store(0, ordering: .relaxed)
      requestCheckpoint(.queueFull)
    }
    do throws(ChannelError) { unsafe try channel.post(.input, card: 0, number: number, frame: frame) } catch {
      channel.abandon()
    }
  }

  public var hasRoomForInput: Bool { !isFlooded.load(ordering: .relaxed) }

  /// Now and then; any thread.
  @discardableResult
  private func judgeFlood(_ channel: Channel) -> Bool {
    let loaded = state.withLock { $0.inputLoaded }
    // Half of it must be gone before more is taken.
    let limit = isFlooded.load(ordering: .relaxed) ? 2 : 1 as UInt64
    let isMuch =
      inputTotal.load(ordering: .relaxed) &- loaded > Self.keptLimit / limit
      || channel.queuedBytes > Self.queueLimit / Int(limit)
    isFlooded.store(isMuch, ordering: .relaxed)
    return isMuch
  }

  public func started(_ frame: UnsafeRawBufferPointer) {
    guard options.mode.compares, let channel = state.withLock({ $0.channel }) else { return }
    isAwaited.store(true, ordering: .relaxed)
    do throws(ChannelError) {
      unsafe try channel.post(.started, card: 0, number: gate.epoch, frame: frame)
    } catch { channel.abandon() }
  }

  public func gateIsFull() { requestCheckpoint(.queueFull) }

  public func wireLost() {
    state.withLock { $0.isTapLost = true }
    lx_eventfd_signal(wake)
  }

  public func flush() {
    early.post()
    state.withLock({ $0.channel })?.flush()
  }

  /// Output that leaves early is told of with the next input, unless that comes too late.
  public func outputEnded() { if isAwaited.exchange(false, ordering: .relaxed) { flush() } }

  // MARK: Protection

  /// Protects a machine that runs, over a channel whose handshake is done, until the secondary is lost. Blocks; the caller
  /// goes on with an unprotected machine afterwards.
  /// - Parameters:
  ///   - channel: its secondary knows the machine, and has admitted this side (``Channel/awaitAdmission(_:within:)``).
  ///   - beats: the second way of signs of life. The secondary gets nothing before it has been heard there.
  public func protect(
    _ machine: Machine, backend: PairBackend?, disks: [MirroredDisk], channel: Channel, beats: BeatPath
  ) -> String {
    state.withLock { state in
      state.channel = channel
      state.isCopying = true
      state.backlog = DiskBacklog()
      state.loaded = 0
      state.cuts = []
      state.inputLoaded = inputTotal.load(ordering: .relaxed)
      state.isProtecting = true
    }
    isFlooded.store(false, ordering: .relaxed)
    defer { state.withLock { $0.isProtecting = false } }
    early.begin(channel)
    comparison.withLock { comparison in
      comparison.comparator.restart()
      comparison.comparator.begin(channel)
    }
    FaultPoints.use(channel)
    peer.begin(channel, beats)
    receivingEnded.store(false, ordering: .releasing)
    peer.change(.secondaryConnected)
    var threads: [HostThread] = []
    do throws(HostError) {
      threads.append(try HostThread.start(name: "pair-send") { _ = channel.runSender() })
      threads.append(try HostThread.start(name: "pair-receive") { [self] in receive(channel, backend) })
      threads.append(
        try HostThread.start(name: "pair-tick") { [self] in
          peer.run(channel) {
            peer.lose()
            channel.dropBulk()
            lx_eventfd_signal(wake)
          } onBeat: {
            if isFlooded.load(ordering: .relaxed), !judgeFlood(channel) { backend?.readAgain() }
          }
        })
    } catch { peer.lose("\(error)") }
    let why = checkpoints(machine, backend, disks, channel)
    // Before anything leaves that the secondary does not know of. One that has no whole checkpoint takes over from nobody.
    let isAlone = peer.role == .fenced || peer.leave() || state.withLock { $0.isCopying }
    backend?.endForwarding()
    early.end()
    // Whatever waited may go: there is nobody left who could contradict it.
    if isAlone, peer.role != .fenced { serveAlone(backend) }
    // Waits for a write under way, which the disk may keep waiting.
    for disk in disks { disk.mirror(to: nil) }
    state.withLock { state in
      state.channel = nil
      state.loss = why
    }
    meter.channelEnded(bytesSent: channel.bytesSent)
    if machine.end == nil { peer.change(isAlone ? .peerLost : .stalled) }
    turn.borrow(machine) {}
    dismiss(channel, guestEnded: machine.end != nil, isAlone: isAlone)
    peer.end()
    for thread in threads { thread.join() }
    gate.retry()
    return why
  }

  /// How many times longer than usual silences are borne: $MINIVMM_STRETCH, for tests on emulated hosts.
  public static var stretch: UInt64 { PeerWatch.stretch }

  /// Nobody else serves: what is held may go.
  private func serveAlone(_ backend: PairBackend?) {
    peer.isSureToServe()
    gate.unprotect()
    backend?.roomMade()
  }

  // MARK: Whether another serves

  /// Nothing leaves before it is known that nobody else serves this guest: it has just been started, and its clients may have had
  /// another host by now. ``goOn(_:)`` or ``replaced(in:)`` follows.
  public func askFirst() { peer.askFirst() }

  /// Whether that has to be asked, and for how long this side was stopped, in nanoseconds.
  public var mustAsk: Bool { peer.mustAsk }
  public var away: UInt64 { peer.away }

  /// Nobody else serves: this side goes on.
  public func goOn(_ backend: PairBackend?) {
    peer.change(.peerLost)
    serveAlone(backend)
  }

  /// Another serves, in a later term: this side is fenced.
  public func replaced(in term: UInt64) { peer.change(.laterTerm(term)) }

  public var term: UInt64 { peer.term }

  // MARK: The end of protection

  /// A secondary that only slept, or lost no more than the channel, must not take over: it is told in both ways for a second,
  /// or until it has heard.
  /// - Parameter isAlone: else the secondary may have taken over, and is asked for a while.
  private func dismiss(_ channel: Channel, guestEnded: Bool, isAlone: Bool) {
    channel.dropBulk()
    if peer.role != .fenced {
      let isTold = (isAlone || guestEnded) && (try? channel.send(.farewell(guestEnded: guestEnded))) != nil
      if isTold { channel.endSending(within: 100) }
      for _ in 0..<(isAlone ? 100 : 20)
      where peer.role != .fenced && !(isTold && receivingEnded.load(ordering: .acquiring)) {
        peer.listen()
      }
    }
    channel.close()
  }

  /// The checkpoint thread's life; why it ended.
  private func checkpoints(
    _ machine: Machine, _ backend: PairBackend?, _ disks: [MirroredDisk], _ channel: Channel
  ) -> String {
    let nice = getpriority(CInt(PRIO_PROCESS.rawValue), 0)
    defer { setpriority(CInt(PRIO_PROCESS.rawValue), 0, nice) }
    let stage = PageStage()
    let sources = sourcePages.withLock { $0 }
    sources?.removeAll()
    var dirty = PageSet(count: machine.memory.pageCount)
    var first = true
    var last = lx_monotonic_ns()
    var patience = Patience(shortest: options.patience)
    let sent = SentPages(pageCount: machine.memory.pageCount)
    while true {
      let cause = first ? .first : wait(since: last, &patience)
      if machine.end != nil { return "the guest has ended" }
      guard let cause else { return peer.loss }
      do {
        if first {
          guard awaitBothPaths() else { return peer.loss }
          try firstCopy(machine, disks, channel, stage)
          // From here on replies wait while a checkpoint is on its way: the guest's own threads must not keep it. Those of the channel,
          // which are started by now, take turns with them: each reply is theirs as well.
          if options.mode.compares { lx_thread_prefer() }
        }
        var began: UInt64 = 0
        let (saved, epoch, given, network, search) = try turn.borrow(machine) {
          machine.prepareCapture()
          began = lx_monotonic_ns()
          FaultPoints.pass(.paused) { machine.pause(draining: false) }
          let (saved, _) = try machine.capture(into: stage, dirty: &dirty)
          FaultPoints.pass(.saved)
          let epoch = gate.cut()
          let given = [backend?.given ?? 0]
          let network = (backend?.mappings ?? [], (backend?.addresses ?? CardAddresses()).encoded)
          if first {
            backend?.beginForwarding()
            gate.protect()
          }
          let search = markings.epochEnded()
          backend?.seekEarly(search == .on)
          sources?.cut(epoch, changed: stage.pages)
          comparison.withLock { comparison in
            comparison.comparator.checkpoint()
            comparison.base = epoch
          }
          state.withLock { state in
            state.epoch = epoch
            state.isCopying = false
            state.cuts.append((epoch, inputTotal.load(ordering: .relaxed)))
          }
          FaultPoints.pass(.cut)
          return (saved, epoch, given, network, search)
        }
        FaultPoints.pass(.resumed)
        last = lx_monotonic_ns()
        inputBytes.store(0, ordering: .relaxed)
        sources?.update(stage, epoch: epoch)
        let resumed = machine.resumedAt
        meter.tookCheckpoint(epoch, cause, pause: (resumed > began ? resumed : last) - began, pages: stage.pages.count)
        try send(stage, epoch, saved.encoded, first ? [0] : given, network, search, sent, channel)
        first = false
        guard awaitReceived(epoch, channel) else { return peer.loss }
      } catch {
        return "\(error)"
      }
    }
  }

  // MARK: Receiving thread

  private func receive(_ channel: Channel, _ backend: PairBackend?) {
    var heard = 0
    do {
      while true {
        switch try channel.receive() {
        case .inputAcknowledged(_, let count):
          guard count <= inputSent.load(ordering: .acquiring) else { throw ChannelError.notAuthentic }
          meter.inputAcknowledged(count)
          gate.inputAcknowledged(count)
        case .output(_, let base, let frame):
          guard options.mode.compares, frame.count > 12 else { break }
          compare { comparison in
            // The rest comes from before the secondary's load of the newest checkpoint.
            guard base == comparison.base else { return .consistent }
            return unsafe frame.withUnsafeBufferPointer { bytes in
              unsafe comparison.comparator.secondary(
                Span(_unsafeElements: UnsafeBufferPointer(rebasing: bytes[12...])))
            }
          }
        case .piece(_, let base, let piece, let acknowledgement):
          guard options.mode.compares else { break }
          compare { comparison in
            guard base == comparison.base else { return .consistent }
            return comparison.comparator.secondary(piece, acknowledgement: acknowledgement)
          }
        case .contradicted(_, let base, let flow):
          gate.contradict(flow, in: base &+ 1)
          // A later one is on its way already.
          if base == comparison.withLock({ $0.base }) { requestCheckpoint(.mismatch) }
        case .received(let epoch):
          guard epoch <= state.withLock({ $0.epoch }) else { throw ChannelError.notAuthentic }
          FaultPoints.pass(.receivedHeard)
          gate.received(epoch)
          FaultPoints.pass(.released)
          meter.received(epoch)
          state.withLock { $0.received = max($0.received, epoch) }
          peer.change(.firstCheckpoint)
          lx_eventfd_signal(wake)
        case .loaded(let epoch, let nanoseconds):
          meter.loaded(epoch, nanoseconds: nanoseconds)
          state.withLock { state in
            state.loaded = epoch
            while let cut = state.cuts.first, cut.epoch <= epoch {
              state.inputLoaded = cut.bytes
              state.cuts.removeFirst()
            }
            state.loadedAt = lx_monotonic_ns()
            state.backlog.loaded(epoch)
          }
        case .admission(let refusal, _): if !refusal.isEmpty { throw ChannelError.refused(refusal) }
        case .heartbeat(let term, let time):
          peer.arrived()
          early.heard(time)
          peer.echoed(time)
          // What waited for that.
          gate.retry()
          if peer.change(.laterTerm(term))?.to == .fenced { throw ChannelError.closed }
        case .farewell: throw ChannelError.closed
        case .configuration, .input, .disk, .pages, .checkpoint, .started, .takeOver, .early, .ask:
          throw ChannelError.notAuthentic
        }
        heard += 1
        if !channel.hasReceived || heard % Self.heardTogether == 0 { gate.flush() }
        gate.retry()
        backend?.roomMade()
      }
    } catch {
      if case ChannelError.closed = error { channel.close() }  // else it lives, and hears that it is left first
      peer.lose("\(error)")
      receivingEnded.store(true, ordering: .releasing)
      lx_eventfd_signal(wake)
    }
  }
}
