internal import CLinux
public import Devices
internal import Glibc
public import GuestMemory
public import Replication
internal import StateCodec
internal import Synchronization

/// The network back end of a guest that is one of a pair. It stands between the card and the tap:
/// what comes from the wire is counted and told to the secondary before the guest has it, and what the guest sends goes
/// through the output gate; on a secondary, input comes from the log and output goes to be compared, and nothing goes
/// to the tap, or to the guest from there, until it takes over.
///
/// Frames carry a virtio-net header of 12 bytes throughout.
public final class PairBackend: FrameBackend {
  /// Where frames come from and go to.
  public enum Side: Sendable {
    case serving
    case following
  }

  /// An epoll descriptor over the tap (when serving) and ``wake``: readable when a frame may wait.
  public let descriptor: CInt
  private let tap: any FrameBackend
  /// Signalled when the log has changed.
  private let wake: CInt
  /// Signalled when the gate, for which the card waits, has room.
  private let hasRoom: CInt
  public let gate: OutputGate
  public let log: InputLog
  private let state: Mutex<State>
  /// The gate was full: the card waits for room.
  private let waits = Atomic(false)

  private struct State: ~Copyable {
    var side: Side
    var traffic: any PairTraffic
    /// Between the guest's sequence numbers and the wire's.
    var mapper = SequenceMapper()
    /// A follower's SYNs whose counterpart the primary has not sent yet; ``awaitingLimit`` at the most.
    var awaiting: [[UInt8]] = []
    /// Numbers input for a secondary.
    var forwards = false
    /// The tap is not read, and not waited for: the secondary has as much as it can keep.
    var isChoked = false
    var given: UInt64 = 0
    /// Of a guest whose output may leave early.
    var sources: ReplySources?
    /// On a follower, and after a takeover: what clients were told before its guest said as much.
    var early: EarlyWatch?
    /// What the tap has got before it was this one's to read, the last first.
    var late: [[UInt8]] = []
    /// Those that the guest has claimed.
    var addresses = CardAddresses()
    var scratch: [UInt8] = []
  }

  public init(
    tap: any FrameBackend, side: Side, gate: OutputGate, log: InputLog, traffic: any PairTraffic
  ) throws(HostError) {
    self.tap = tap
    self.gate = gate
    self.log = log
    descriptor = lx_epoll_create()
    wake = lx_eventfd(0)
    hasRoom = lx_eventfd(0)
    state = Mutex(State(side: side, traffic: traffic))
    guard descriptor >= 0, wake >= 0, hasRoom >= 0 else {
      throw HostError(operation: "epoll_create", errno: -min(descriptor, wake, hasRoom))
    }
    lx_epoll_ctl(descriptor, EPOLL_CTL_ADD, wake, EPOLLIN.rawValue, 0)
    if side == .serving { lx_epoll_ctl(descriptor, EPOLL_CTL_ADD, tap.descriptor, EPOLLIN.rawValue, 1) }
  }

  deinit {
    lx_close(wake)
    lx_close(hasRoom)
    lx_close(descriptor)
  }

  private static let awaitingLimit = 1024

  // MARK: Control

  /// What the guest says of its replies counts from here on: it may go early what `pages` show to be with the secondary.
  func useSources(_ memory: GuestMemory, _ registers: PairRegisters, _ pages: SourcePages) {
    state.withLock { state in
      state.sources = ReplySources(memory, registers, pages)
      state.sources?.isFollowing = state.side == .following
    }
  }

  /// Whether it is looked for what may leave early, from here on. The machine stands still.
  public func seekEarly(_ seeks: Bool) { state.withLock { $0.sources?.isIdle = !seeks } }

  /// What a follower's guest is given goes by what clients were told early.
  func heed(_ early: EarlyWatch) { state.withLock { $0.early = early } }

  /// Input is numbered from 1 and told to the secondary from here on. The machine stands still.
  public func beginForwarding() {
    state.withLock { state in
      state.forwards = true
      state.given = 0
      state.sources?.skip()
    }
  }

  public func endForwarding() {
    state.withLock { state in
      state.forwards = false
      readAgain(&state)
    }
  }

  /// There is room for input again.
  public func readAgain() { state.withLock { readAgain(&$0) } }

  private func readAgain(_ state: inout State) {
    guard state.isChoked else { return }
    state.isChoked = false
    lx_epoll_ctl(descriptor, EPOLL_CTL_ADD, tap.descriptor, EPOLLIN.rawValue, 1)
    signal()
  }

  /// How many frames of input the guest has been given since ``beginForwarding()``.
  public var given: UInt64 { state.withLock { $0.side == .serving ? $0.given : log.given } }

  /// A secondary that takes over: from now on the tap is its wire, and `traffic` is told of what passes. What is left in the
  /// log comes first, then `late`: what has come from the tap already.
  public func serve(_ traffic: any PairTraffic, early: EarlyWatch? = nil, after late: [[UInt8]] = []) {
    state.withLock { state in
      guard state.side == .following else { return }
      state.late = late.reversed()
      state.early = early
      state.side = .serving
      state.sources?.isFollowing = false
      state.sources?.isIdle = false
      state.traffic = traffic
      state.mapper.failOver()
      state.awaiting = []
      state.forwards = false
      lx_epoll_ctl(descriptor, EPOLL_CTL_ADD, tap.descriptor, EPOLLIN.rawValue, 1)
    }
    signal()
  }

  /// The connections whose numbers on the wire are not the guest's, for a checkpoint. The machine stands still.
  public var mappings: [UInt8] { state.withLock { $0.mapper.encoded } }

  /// The addresses that the guest has claimed for its card, by the newest checkpoint where it follows.
  public var addresses: CardAddresses { state.withLock { $0.addresses } }

  /// Refuses what ``loaded(epoch:given:mappings:addresses:)`` would refuse once all that came before it is loaded. Any thread.
  public func check(given: UInt64, mappings: [UInt8], addresses: [UInt8]) throws {
    guard given <= log.received else { throw InputLog.Refusal.unknownInput(given: given) }
    _ = try CardAddresses(decoding: addresses)
    try state.withLock { state throws(StateError) in try state.mapper.check(mappings) }
  }

  /// The guest goes on from the primary's state at the end of `epoch`. The machine stands still.
  /// - Parameter seeksEarly: whether the primary looks for what may leave early in the epoch that follows.
  public func loaded(
    epoch: UInt64, given: UInt64, mappings: [UInt8], addresses: [UInt8], seeksEarly: Bool = true
  ) throws {
    try log.rewind(toCheckpointAfter: given)
    let addresses = try CardAddresses(decoding: addresses)
    let failure: (any Error)? = state.withLock { state in
      state.awaiting.removeAll()
      state.sources?.restart()
      state.sources?.isIdle = !seeksEarly
      state.addresses = addresses
      do { try state.mapper.checkpointLoaded(epoch: epoch, mappings: mappings) } catch { return error }
      return nil
    }
    if let failure { throw failure }
  }

  /// The primary's guest has begun a connection in `epoch`: a follower's frames can be mapped from now on.
  public func primaryStarted(_ frame: [UInt8], epoch: UInt64) {
    guard frame.count > NetHeader.size else { return }
    state.withLock { state in
      guard state.side == .following else { return }
      let outcome = unsafe frame.withUnsafeBufferPointer { bytes in
        unsafe state.mapper.primaryOutput(
          Span(_unsafeElements: UnsafeBufferPointer(rebasing: bytes[NetHeader.size...])), epoch: epoch)
      }
      guard outcome == .mapped else { return }
      let waiting = state.awaiting
      state.awaiting = []
      for var frame in waiting {
        unsafe frame.withUnsafeMutableBytes { unsafe follow($0, GuestBuffers(), offset: 0, &state) }
      }
    }
  }

  /// There is input in the log.
  public func signal() { lx_eventfd_signal(wake) }

  /// Frames have left the gate.
  public func roomMade() {
    // Asked after every message: not a word is written for nothing.
    if waits.load(ordering: .sequentiallyConsistent), waits.exchange(false, ordering: .sequentiallyConsistent) {
      lx_eventfd_signal(hasRoom)
    }
  }

  /// Lets a frame out on a tap; false when it is full for now.
  public static func send(_ frame: [UInt8], to tap: any FrameBackend) -> Bool { TapOutput.send(frame, to: tap) }

  // MARK: FrameBackend

  public var room: CInt? { hasRoom }
  public var offloads: UInt64 { tap.offloads }
  public func setGuestOffloads(_ features: UInt64) { tap.setGuestOffloads(features) }
  public func flush() -> Bool {
    state.withLock { state in
      state.traffic.outputEnded()
      gate.flush()
      return !waits.load(ordering: .relaxed)
    }
  }

  public func send(
    _ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory
  ) -> SendResult {
    state.withLock { state in
      let size = header.count + Int(count)
      var scratch: [UInt8] = []
      swap(&scratch, &state.scratch)
      defer { swap(&scratch, &state.scratch) }
      if scratch.count < size { scratch = [UInt8](repeating: 0, count: size) }
      return unsafe scratch.withUnsafeMutableBytes { scratch in
        unsafe header.withUnsafeBytes { unsafe scratch.copyMemory(from: $0) }
        let body = unsafe UnsafeMutableRawBufferPointer(rebasing: scratch[header.count..<size])
        guard unsafe memory.gather(frame, offset: offset, into: body) == Int(count) else { return .dropped }
        let whole = unsafe UnsafeMutableRawBufferPointer(rebasing: scratch[..<size])
        guard state.side == .serving else {
          unsafe follow(whole, frame, offset: offset, &state)
          return .sent
        }
        let bytes = UnsafeRawBufferPointer(whole)
        // As the guest numbers it.
        let own = unsafe Self.parse(bytes)
        // ARP, ICMPv6: few.
        if own.kind == .whole || own.key.proto == 58 { unsafe Self.hear(bytes, &state.addresses) }
        // Without room it comes again, and is looked at then. What may leave takes some until it is sent.
        if !gate.hasRoom(for: size) {
          gate.flush()
          if !gate.hasRoom(for: size) { return full(size, state.traffic) }
        }
        let isSought = state.sources?.isIdle == false
        let standing =
          state.forwards && whole.count > NetHeader.size
          ? unsafe state.sources?.standing(
            own, UnsafeRawBufferPointer(rebasing: bytes[NetHeader.size...]), frame, offset: offset) : nil
        // Again after each `full`, from the guest's buffers.
        if state.mapper.count > 0 { _ = unsafe Self.map(whole, .outgoing, &state.mapper) }
        let parsed = state.mapper.count > 0 ? unsafe Self.parse(bytes) : own
        switch unsafe state.early?.outgoing(bytes, parsed) ?? .pass {
        case .pass: break
        case .drop: return .sent
        case .replace(let reset):
          _ = TapOutput.send(reset, to: tap)
          return .sent
        }
        var early: (synchronisedBy: UInt64, told: UInt64)?
        var marking: Marking = state.sources?.isUsed != true ? .none : isSought ? .unmarked : .unsought
        if case .since(let checkpoint) = standing, let told = unsafe state.traffic.leavesEarly(bytes) {
          (early, marking) = ((checkpoint, told), .marked)
        } else if let standing {
          marking = standing == .changed ? .changed : .open
        }
        switch unsafe gate.put(
          bytes, flow: parsed.key, inputGiven: state.forwards ? state.given : 0, early: early)
        {
        case .admitted(let token):
          waits.store(false, ordering: .relaxed)
          if state.forwards {
            if parsed.kind == .tcp, parsed.flags.contains(.syn) { unsafe state.traffic.started(bytes) }
            unsafe state.traffic.output(token, bytes, marking)
          }
          return .sent
        case .full: return full(size, state.traffic)
        }
      }
    }
  }

  private func full(_ size: Int, _ traffic: any PairTraffic) -> SendResult {
    waits.store(true, ordering: .sequentiallyConsistent)
    traffic.gateIsFull()
    // Room that was made before that was known.
    if gate.hasRoom(for: size) { roomMade() }
    return .full
  }

  public func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    state.withLock { state in
      gate.retry()
      var count = unsafe next(buffer, &state)
      // Once a batch. Whoever signalled by now is not heard of again: what came with it is looked for.
      if count == 0, lx_eventfd_take(wake) != 0 {
        gate.retry()
        count = unsafe next(buffer, &state)
      }
      if state.side == .serving {
        // What a survivor had left in its log as well: its own secondary has not heard of it.
        if count > 0, state.forwards {
          state.given += 1
          unsafe state.traffic.input(state.given, UnsafeRawBufferPointer(rebasing: buffer[..<count]))
        }
      }
      if count > 0 { unsafe state.early?.giving(UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])) }
      if count > NetHeader.size, state.mapper.count > 0 {
        _ = unsafe Self.map(UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]), .incoming, &state.mapper)
      }
      return count
    }
  }

  public func receivingEnded() {
    state.withLock { state in if state.side == .serving, state.forwards { state.traffic.flush() } }
  }

  private func next(_ buffer: UnsafeMutableRawBufferPointer, _ state: inout State) -> Int {
    let count = unsafe log.next(into: buffer)
    return unsafe count == 0 && state.side == .serving ? fromTap(buffer, &state) : count
  }

  /// The next frame from the wire that is for the guest.
  private func fromTap(_ buffer: UnsafeMutableRawBufferPointer, _ state: inout State) -> Int {
    while true {
      var count: Int
      if let frame = state.late.popLast() {
        guard frame.count <= buffer.count else { continue }
        count = frame.count
        unsafe frame.withUnsafeBytes { unsafe buffer.copyMemory(from: $0) }
      } else {
        if state.forwards, !state.isChoked, !state.traffic.hasRoomForInput {
          state.isChoked = true
          lx_epoll_ctl(descriptor, EPOLL_CTL_DEL, tap.descriptor, 0, 0)
        }
        if state.isChoked { return 0 }
        count = unsafe tap.receive(into: buffer)
        if count < 0 { state.traffic.wireLost() }
      }
      guard count > NetHeader.size, let early = state.early else { return count }
      let frame = unsafe UnsafeRawBufferPointer(rebasing: buffer[..<count])
      switch unsafe early.incoming(frame, Self.parse(frame)) {
      case .pass: return count
      case .drop: continue
      case .replace(let reset): _ = TapOutput.send(reset, to: tap)
      }
    }
  }

  private static func hear(_ frame: UnsafeRawBufferPointer, _ addresses: inout CardAddresses) {
    guard frame.count > NetHeader.size else { return }
    unsafe UnsafeRawBufferPointer(rebasing: frame[NetHeader.size...]).withMemoryRebound(to: UInt8.self) {
      unsafe addresses.heard(Span(_unsafeElements: $0))
    }
  }

  private static func parse(_ frame: UnsafeRawBufferPointer) -> Frame { unsafe Frame(frame, header: NetHeader.size) }

  /// A follower's frame, to be compared once its numbers are the primary's.
  private func follow(
    _ frame: UnsafeMutableRawBufferPointer, _ buffers: GuestBuffers, offset: UInt64, _ state: inout State
  ) {
    var standing: Standing?
    if frame.count > NetHeader.size {
      let bytes = UnsafeRawBufferPointer(frame)
      standing = unsafe state.sources?.standing(
        Self.parse(bytes), UnsafeRawBufferPointer(rebasing: bytes[NetHeader.size...]), buffers, offset: offset)
    }
    if unsafe Self.map(frame, .outgoing, &state.mapper) == .awaitsPrimary {
      // Dropped beyond the limit: the primary hears nothing of the connection, and asks for a checkpoint.
      if state.awaiting.count < Self.awaitingLimit { state.awaiting.append(unsafe Array(frame)) }
      return
    }
    unsafe state.traffic.output(nil, UnsafeRawBufferPointer(frame), standing == .since(0) ? .marked : .unmarked)
  }

  private enum Direction { case outgoing, incoming }

  private static func map(
    _ frame: UnsafeMutableRawBufferPointer, _ direction: Direction, _ mapper: inout SequenceMapper
  ) -> SequenceMapper.Outcome {
    guard frame.count > NetHeader.size else { return .unchanged }
    let isPartial = unsafe NetHeader.isPartial(frame)
    return unsafe UnsafeMutableRawBufferPointer(rebasing: frame[NetHeader.size...]).withMemoryRebound(to: UInt8.self) {
      var bytes = unsafe MutableSpan(_unsafeElements: $0)
      return direction == .outgoing
        ? mapper.outgoing(&bytes, isPartial: isPartial) : mapper.incoming(&bytes, isPartial: isPartial)
    }
  }
}

/// The virtio-net header in front of every frame.
enum NetHeader {
  static let size = 12

  /// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is the pseudo-header's only.
  static func isPartial(_ frame: UnsafeMutableRawBufferPointer) -> Bool { unsafe frame[0] & 1 != 0 }
}
