internal import CLinux
internal import GuestMemory
public import StateCodec
internal import Synchronization
internal import VirtioLayout

/// Counters of one network card.
public final class NetStatistics: Sendable {
  public let receivedFrames = AtomicCounter()
  public let sentFrames = AtomicCounter()
  /// Frames the guest wanted sent that were malformed or that the host side refused.
  public let droppedTransmit = AtomicCounter()
  /// Frames for the guest that no buffer of its could hold.
  public let droppedReceive = AtomicCounter()
  /// Times that the tap or peer has gone, and that it has come back. In between the card drops what the guest sends.
  public let backendLost = AtomicCounter()
  public let backendRegained = AtomicCounter()
  public var isBackendLost: Bool { backendLost.value > backendRegained.value }
}

/// virtio-net (virtio 1.2 §5.1): one receive and one transmit queue between a guest and a ``FrameBackend``.
///
/// A frame is taken from the host only when the guest has a buffer, so a guest that starves its receive queue leaves
/// frames where the host bounds them. Transmit reads each header once and checks it before the host sees it.
public final class NetDevice: VirtioDevice {
  static let backendTag = VirtioMMIO.deviceTag
  static let roomTag = VirtioMMIO.deviceTag + 1
  static let reopenTag = VirtioMMIO.deviceTag + 2
  /// Nanoseconds from the loss of a back end, or an attempt to get it back, to the next attempt: twice as many each time.
  static let shortestDelay: UInt64 = 100_000_000
  static let longestDelay: UInt64 = 5_000_000_000
  static let receiveQueue = 0
  static let transmitQueue = 1
  /// Frames of one visit, in each direction, before others get the thread.
  static let visitLimit = 128
  /// A 64 KiB GSO frame with its Ethernet and virtio headers.
  static let maximumPacket = 65_550 + NetHeader.size

  public let statistics = NetStatistics()
  private let backend: any FrameBackend
  private let state: Mutex<State>
  /// A timer: the next attempt to get the back end back.
  private let retry: CInt?
  private let onBackend: @Sendable (_ isThere: Bool) -> Void

  private struct State {
    var mac: [UInt8]
    var features: UInt64 = 0
    var source: EventLoop.Source?
    var loop: EventLoop?
    weak var handler: (any EventHandler)?
    var interest: UInt32 = EPOLLIN.rawValue
    /// The tap or peer has gone: frames of the guest are dropped.
    var lost = false
    var delay = NetDevice.shortestDelay
    /// When it came back last, in monotonic nanoseconds.
    var regained: UInt64 = 0
    /// A received packet (header and frame) that waits for guest buffers.
    var packet = [UInt8](repeating: 0, count: NetDevice.maximumPacket)
    var packetCount = 0
    var chain = DescriptorChain()
    /// Chains one received packet is being spread over.
    var heads: [UInt16] = []
    var written: [UInt32] = []
    var buffers: [GuestBuffers] = []
    var header = [UInt8](repeating: 0, count: NetHeader.size)
  }

  /// - Parameters:
  ///   - mac: six bytes; a restored state brings its own, which its guest has known since it booted.
  ///   - onBackend: told when the tap or peer has gone (false) and has come back (true). Device thread.
  public init(
    backend: any FrameBackend, mac: [UInt8], onBackend: @escaping @Sendable (_ isThere: Bool) -> Void = { _ in }
  ) {
    self.backend = backend
    self.onBackend = onBackend
    retry = backend.canReopen ? lx_timerfd() : nil
    state = Mutex(State(mac: mac))
  }

  deinit { if let retry { lx_close(retry) } }

  public var deviceID: UInt32 { DeviceID.network }
  public var queueCount: Int { 2 }
  public var features: UInt64 { backend.offloads | NetFeature.macAddress | NetFeature.mergeableBuffers }
  /// struct virtio_net_config: the MAC address, then a status field that nobody negotiated.
  public var configuration: [UInt8] { state.withLock(\.mac) + [0, 0, 0, 0] }

  public func attach(to loop: EventLoop, handler: any EventHandler) throws(HostError) {
    let source = try loop.register(
      backend.descriptor, events: 0, handler: handler, tag: Self.backendTag)
    if let room = backend.room {
      _ = try loop.register(room, events: EPOLLIN.rawValue, handler: handler, tag: Self.roomTag)
    }
    if let retry {
      guard retry >= 0 else { throw HostError(operation: "timerfd_create", errno: -retry) }
      _ = try loop.register(retry, events: EPOLLIN.rawValue, handler: handler, tag: Self.reopenTag)
    }
    state.withLock { state in
      state.loop = loop
      state.handler = handler
      state.source = source
      state.interest = 0
    }
  }

  public func activate(features: UInt64) {
    backend.setGuestOffloads(features)
    state.withLock { state in
      state.features = features
      setInterest(EPOLLIN.rawValue, &state)
    }
  }

  public func reset() {
    state.withLock { state in
      state.packetCount = 0
      state.features = 0
      setInterest(0, &state)
    }
  }

  public func resume() {
    state.withLock { state in
      guard let loop = state.loop, let source = state.source else { return }
      loop.setInterest(source, events: state.interest)
    }
  }

  private func setInterest(_ events: UInt32, _ state: inout State) {
    guard events != state.interest else { return }
    state.interest = events
    if let source = state.source { state.loop?.setInterest(source, events: events) }
  }

  /// Listens no more: epoll reports a descriptor's end whatever the interest.
  private func lose(_ state: inout State) {
    guard !state.lost else { return }
    state.lost = true
    if let source = state.source { state.loop?.unregister(source) }
    state.source = nil
    state.interest = 0
    statistics.backendLost.add(1)
    onBackend(false)
    // One that stayed for a while is soon back; a peer that hangs up again and again is not called all the time.
    if lx_monotonic_ns() &- state.regained > 2 * Self.longestDelay { state.delay = Self.shortestDelay }
    reopenLater(&state)
  }

  private func reopenLater(_ state: inout State) {
    guard let retry else { return }
    lx_timerfd_arm(retry, state.delay)
    state.delay = min(2 * state.delay, Self.longestDelay)
  }

  /// The time has come to try; true when the back end is there again.
  private func reopen(_ state: inout State, isRunning: Bool) -> Bool {
    if let retry { _ = lx_eventfd_take(retry) }
    guard state.lost, let loop = state.loop, let handler = state.handler else { return false }
    let events = isRunning ? EPOLLIN.rawValue : 0
    guard backend.reopen(),
      let source = try? loop.register(backend.descriptor, events: events, handler: handler, tag: Self.backendTag)
    else {
      reopenLater(&state)
      return false
    }
    state.source = source
    state.interest = events
    state.lost = false
    state.regained = lx_monotonic_ns()
    statistics.backendRegained.add(1)
    onBackend(true)
    return true
  }

  public func process(queue: Int, _ queues: inout QueueSet) -> Bool {
    state.withLock { state in
      if queue == Self.transmitQueue { return transmit(&state, &queues) }
      let again = receive(&state, &queues)
      // Nobody else visits frames that waited for the host to take them.
      return state.lost ? transmit(&state, &queues) : again
    }
  }

  public func event(tag: UInt32, events: UInt32, _ queues: inout QueueSet) -> Int? {
    state.withLock { state in
      if tag == Self.roomTag {
        if let room = backend.room { _ = lx_eventfd_take(room) }
        return transmitAgain(&state, &queues) ? Self.transmitQueue : nil
      }
      if tag == Self.reopenTag {
        return reopen(&state, isRunning: queues.running) ? Self.transmitQueue : nil
      }
      if events & (EPOLLERR.rawValue | EPOLLHUP.rawValue) != 0 {
        // The tap was deleted or the peer has closed; what it sent before is still there.
        if receive(&state, &queues) { return Self.receiveQueue }
        lose(&state)
        return Self.transmitQueue
      }
      // What its share leaves comes with the next event: a descriptor that has room says so again.
      if events & EPOLLOUT.rawValue != 0, transmitAgain(&state, &queues) {
        setInterest(state.interest | EPOLLOUT.rawValue, &state)
      }
      guard events & ~EPOLLOUT.rawValue != 0 else { return nil }
      let again = receive(&state, &queues)
      return state.lost ? Self.transmitQueue : again ? Self.receiveQueue : nil
    }
  }

  // MARK: To the guest

  /// True when the visit's share is used up: the back end may hold frames that its descriptor does not tell of.
  private func receive(_ state: inout State, _ queues: inout QueueSet) -> Bool {
    let queue = Self.receiveQueue
    guard !state.lost, queues.isUsable(queue) else {
      setInterest(state.interest & ~EPOLLIN.rawValue, &state)
      return false
    }
    defer {
      backend.receivingEnded()
      queues.flush(queue)
    }
    let visit = Visit()
    for count in 0..<Self.visitLimit {
      // Frames of 64 KiB take their time; of small ones so many do not.
      if count % 8 == 7, visit.isOver { break }
      guard queues.hasPending(queue) || queues.enableNotifications(queue) else {
        // No buffer: leave frames with the host until the guest notifies.
        setInterest(state.interest & ~EPOLLIN.rawValue, &state)
        return false
      }
      if state.packetCount == 0 {
        let count = unsafe state.packet.withUnsafeMutableBytes { unsafe backend.receive(into: $0) }
        if count < 0 {
          lose(&state)
          return false
        }
        guard count > NetHeader.size else {
          setInterest(state.interest | EPOLLIN.rawValue, &state)
          return false
        }
        state.packetCount = count
      }
      switch deliver(&state, &queues) {
      case .delivered:
        state.packetCount = 0
        statistics.receivedFrames.add(1)
      case .dropped:
        state.packetCount = 0
        statistics.droppedReceive.add(1)
      case .needsBuffers:
        // The buffers there are were not enough: only more of them help.
        guard queues.enableNotifications(queue, beyond: UInt16(state.heads.count)) else {
          setInterest(state.interest & ~EPOLLIN.rawValue, &state)
          return false
        }
      }
    }
    setInterest(state.interest | EPOLLIN.rawValue, &state)
    return true
  }

  private enum Delivery { case delivered, dropped, needsBuffers }

  /// Spreads the waiting packet over as many chains as it needs; all become visible to the driver at once.
  private func deliver(_ state: inout State, _ queues: inout QueueSet) -> Delivery {
    let queue = Self.receiveQueue
    let mergeable = state.features & NetFeature.mergeableBuffers != 0
    guard NetFrameRules.mayDeliver(gsoType: state.packet[1], features: state.features) else { return .dropped }
    if state.features & NetFeature.guestChecksum == 0 { state.packet[0] = 0 }
    var offset = 0
    state.heads.removeAll(keepingCapacity: true)
    state.written.removeAll(keepingCapacity: true)
    var first: GuestBuffers?
    while offset < state.packetCount {
      guard queues.pop(queue, into: &state.chain) else {
        // A broken ring has stopped the device; an empty one is tried again.
        queues.unpop(queue, state.heads[...])
        // A queue full of buffers that are too small together will never hold it.
        return state.heads.count == Int(queues.queues[queue].size) ? .dropped : .needsBuffers
      }
      let room = Int(state.chain.writable.count)
      if offset == 0, room < NetHeader.size || (!mergeable && room < state.packetCount) {
        // Too small ever to hold it: the buffer goes back, the frame is lost.
        queues.mistakes.add(.request)
        queues.push(queue, head: state.chain.head, written: 0)
        return .dropped
      }
      let count = min(room, state.packetCount - offset)
      let packet = state.packet
      unsafe packet.withUnsafeBytes { bytes in
        _ = unsafe queues.memory.scatter(
          UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count]), to: state.chain.writable)
      }
      if offset == 0 { first = state.chain.writable }
      state.heads.append(state.chain.head)
      state.written.append(UInt32(count))
      offset += count
    }
    if let first {
      // §5.1.6.4.1: num_buffers is 1 when buffers were not merged.
      queues.memory.scatter(UInt16(state.heads.count), to: first, offset: 10)
    }
    for (head, written) in zip(state.heads, state.written) { queues.push(queue, head: head, written: written) }
    return .delivered
  }

  // MARK: From the guest

  /// True when the visit's share is used up and chains are left.
  private func transmit(_ state: inout State, _ queues: inout QueueSet) -> Bool {
    let queue = Self.transmitQueue
    guard state.interest & EPOLLOUT.rawValue == 0, queues.isUsable(queue) else { return false }
    // The rest of a frame that was taken in part must not wait for the next one.
    defer { if !state.lost, !backend.flush() { setInterest(state.interest | EPOLLOUT.rawValue, &state) } }
    queues.disableNotifications(queue)
    let visit = Visit()
    for count in 1...Self.visitLimit {
      if count % 8 == 0, visit.isOver { break }
      guard queues.pop(queue, into: &state.chain) else {
        queues.flush(queue)
        guard queues.enableNotifications(queue) else { return false }
        continue
      }
      switch send(&state, &queues) {
      case .sent: statistics.sentFrames.add(1)
      case .dropped: statistics.droppedTransmit.add(1)
      case .full:
        queues.unpop(queue, [state.chain.head])
        queues.flush(queue)
        setInterest(state.interest | EPOLLOUT.rawValue, &state)
        return false
      }
      queues.push(queue, head: state.chain.head, written: 0)
      if count % 32 == 0 { queues.flush(queue) }
    }
    queues.flush(queue)
    return true
  }

  /// There may be room for what waited; as ``transmit(_:_:)``.
  private func transmitAgain(_ state: inout State, _ queues: inout QueueSet) -> Bool {
    guard state.interest & EPOLLOUT.rawValue != 0, backend.flush() else { return false }
    setInterest(state.interest & ~EPOLLOUT.rawValue, &state)
    return transmit(&state, &queues)
  }

  private func send(_ state: inout State, _ queues: inout QueueSet) -> SendResult {
    let frame = state.chain.readable
    guard
      let header = queues.memory.gather(NetHeader.self, frame),
      NetFrameRules.accepts(header, frameLength: Int(frame.count) - NetHeader.size, features: state.features)
    else {
      queues.mistakes.add(.request)
      return .dropped
    }
    if state.lost { return .dropped }
    NetFrameRules.encode(header, into: &state.header)
    return backend.send(
      state.header, frame, offset: UInt64(NetHeader.size), count: frame.count - UInt64(NetHeader.size),
      memory: queues.memory)
  }

  // MARK: State

  public func quiesce(_ queues: inout QueueSet) {}

  public func save(to writer: inout StateWriter) {
    state.withLock {
      writer.put($0.mac)
      writer.put(Array($0.packet[..<$0.packetCount]))
    }
  }

  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {
    let mac = try reader.get([UInt8].self)
    guard mac.count == 6, mac[0] & 1 == 0 else { throw .invalid("a card's address \(mac)") }
    let packet = try reader.get([UInt8].self)
    guard packet.isEmpty || (NetHeader.size + 1...Self.maximumPacket).contains(packet.count) else {
      throw .invalid("a waiting frame of \(packet.count) bytes")
    }
    if isTrial { return }
    state.withLock { state in
      state.mac = mac
      state.packet.replaceSubrange(..<packet.count, with: packet)
      state.packetCount = packet.count
    }
  }
}
