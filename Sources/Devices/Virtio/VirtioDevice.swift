public import GuestMemory
public import StateCodec
internal import Synchronization
internal import VirtioLayout

/// What a virtio device adds to its transport. Every call comes under the transport's lock: ``process`` and ``event``
/// on the device thread, the rest on whatever thread touched the registers or runs the control plane.
public protocol VirtioDevice: AnyObject, Sendable {
  /// virtio 1.2 §5.
  var deviceID: UInt32 { get }
  /// Device-specific feature bits on offer; constant.
  var features: UInt64 { get }
  var queueCount: Int { get }
  /// Whether a driver's requests follow each other closely enough to be looked for (``EventHandler/polls``).
  var polls: Bool { get }
  /// Whether a request that was in flight when the state was saved may be done again by who takes the state in. Such a device gives
  /// no chain back unused (``QueueSet/unpop(_:_:)``).
  var repeatsRequests: Bool { get }
  /// Configuration space; bytes beyond it read as zero.
  var configuration: [UInt8] { get }
  /// Registers descriptors of the host side (tap, socket, worker) with `loop`; their events come back as ``event``.
  func attach(to loop: EventLoop, handler: any EventHandler) throws(HostError)
  /// Starts the device's own threads, as the machine's start: none exists before. Once.
  func start() throws(HostError)
  /// The driver has set DRIVER_OK.
  func activate(features: UInt64)
  /// Works on one queue until it is empty or its share of the thread is used up.
  /// Returns true when work is left and the queue should be visited again soon.
  func process(queue: Int, _ queues: inout QueueSet) -> Bool
  /// A descriptor registered with tag `tag` is ready. Returns the queue that should be visited soon, if any.
  func event(tag: UInt32, events: UInt32, _ queues: inout QueueSet) -> Int?
  /// Returns with every popped chain given back, whatever it takes.
  func quiesce(_ queues: inout QueueSet)
  /// Forgets the driver. Requests in flight end first; none of them completes afterwards.
  func reset()
  /// From any thread, at any time; changes nothing.
  func save(to writer: inout StateWriter)
  /// - Parameter isTrial: nothing changes; see ``MachineDevice/restore(from:isTrial:)``.
  func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError)
  /// After a restore or a pause: look at the host side again.
  func resume()
}

extension VirtioDevice {
  public var polls: Bool { false }
  public var repeatsRequests: Bool { false }
  public func attach(to loop: EventLoop, handler: any EventHandler) throws(HostError) {}
  public func start() throws(HostError) {}
  public func activate(features: UInt64) {}
  public func event(tag: UInt32, events: UInt32, _ queues: inout QueueSet) -> Int? { nil }
  public func quiesce(_ queues: inout QueueSet) {}
  public func reset() {}
  public func save(to writer: inout StateWriter) {}
  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {}
  public func resume() {}
}

/// The interrupt of one virtio-mmio device: status bits and the line. Any thread.
public final class VirtioInterrupt: Sendable {
  private let status = Atomic<UInt32>(0)
  private let line: InterruptLine

  init(line: InterruptLine) { self.line = line }

  @inline(__always)
  func raise(_ bit: UInt32) {
    _ = status.bitwiseOr(bit, ordering: .acquiringAndReleasing)
    line.raise()
  }

  var pending: UInt32 {
    get { status.load(ordering: .acquiring) }
    set { status.store(newValue, ordering: .releasing) }
  }

  func acknowledge(_ bits: UInt32) { _ = status.bitwiseAnd(~bits, ordering: .acquiringAndReleasing) }
  func resend() { if pending != 0 { line.raise() } }
}

/// The queues of one device, as the device sees them. A mistake in a ring is remembered in ``failure``, after which
/// every operation does nothing: the transport then asks the driver for a reset.
public struct QueueSet: Sendable {
  public let memory: GuestMemory
  public internal(set) var queues: [Virtqueue]
  public private(set) var failure: QueueError?
  /// Negotiated features; 0 until FEATURES_OK.
  public internal(set) var features: UInt64 = 0
  /// True between DRIVER_OK and reset.
  public internal(set) var running = false
  /// The device takes no more for now, and asks for a visit when it does again: what waits is not looked for.
  public var isHeldBack = false
  /// True while the device thread polls the queues: drivers then need not notify.
  var watched = false {
    didSet {
      guard watched, !oldValue else { return }
      for index in queues.indices {
        attempt((), index) { queue, memory throws(QueueError) in try queue.suspendNotifications(memory) }
      }
    }
  }
  let interrupt: VirtioInterrupt
  public let mistakes: MistakeCounters

  init(memory: GuestMemory, count: Int, interrupt: VirtioInterrupt, mistakes: MistakeCounters) {
    self.memory = memory
    self.interrupt = interrupt
    self.mistakes = mistakes
    queues = [Virtqueue](repeating: Virtqueue(), count: count)
  }

  public func isUsable(_ index: Int) -> Bool { running && failure == nil && queues[index].ready }

  @inline(__always)
  private mutating func attempt<R>(
    _ fallback: R, _ index: Int, _ body: (inout Virtqueue, GuestMemory) throws(QueueError) -> R
  ) -> R {
    guard isUsable(index) else { return fallback }
    do throws(QueueError) { return try body(&queues[index], memory) } catch {
      failure = error
      // Nothing is given back before the reset, nor to be done again.
      for index in queues.indices { queues[index].forgetInFlight() }
      return fallback
    }
  }

  public mutating func pop(_ index: Int, into chain: inout DescriptorChain) -> Bool {
    attempt(false, index) { queue, memory throws(QueueError) in try queue.pop(memory, into: &chain) }
  }

  public mutating func hasPending(_ index: Int) -> Bool {
    guard !isHeldBack else { return false }
    return attempt(false, index) { queue, memory throws(QueueError) in try queue.pending(memory) != 0 }
  }

  public mutating func unpop(_ index: Int, _ heads: ArraySlice<UInt16>) {
    attempt((), index) { queue, _ throws(QueueError) in queue.unpop(heads) }
  }

  /// Gives a chain back with `written` bytes in its writable part; visible to the driver after ``flush(_:)``.
  public mutating func push(_ index: Int, head: UInt16, written: UInt32) {
    attempt((), index) { queue, memory throws(QueueError) in try queue.fill(memory, head: head, written: written) }
  }

  /// Publishes what was pushed and interrupts the driver if it asked for that.
  public mutating func flush(_ index: Int) {
    let wanted = attempt(false, index) { queue, memory throws(QueueError) in
      try queue.publish(memory)
      return try queue.wantsInterrupt(memory)
    }
    if wanted { interrupt.raise(MMIORegister.usedBufferInterrupt) }
  }

  /// Asks for a notification when more than `known` chains wait; true when they do by now.
  public mutating func enableNotifications(_ index: Int, beyond known: UInt16 = 0) -> Bool {
    let watched = watched
    return attempt(false, index) { queue, memory throws(QueueError) in
      guard !watched else { return try queue.pending(memory) > known }
      return try queue.enableNotifications(memory, beyond: known)
    }
  }

  public mutating func disableNotifications(_ index: Int) {
    attempt((), index) { queue, memory throws(QueueError) in try queue.disableNotifications(memory) }
  }

  mutating func clearFailure() { failure = nil }
}
