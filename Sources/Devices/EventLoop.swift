internal import CLinux
internal import Glibc
internal import Synchronization

/// What a descriptor's readiness is told to. Called on the device thread only.
public protocol EventHandler: AnyObject, Sendable {
  /// - Parameters:
  ///   - tag: the number given at registration (such as a queue index).
  ///   - events: EPOLL* bits.
  func ready(tag: UInt32, events: UInt32)
}

/// The device thread's loop: epoll over every ioeventfd, tap, socket and timer of one VM.
///
/// Descriptors come and go, and interest in one changes, at any time and from any thread; an event of a descriptor that has
/// gone finds nobody, because its token holds a generation.
public final class EventLoop: Sendable {
  private struct Registration {
    var handler: (any EventHandler)?
    var tag: UInt32
    var generation: UInt32
  }
  private enum Phase { case idle, running, parking, parked, stopping }

  private let epoll: CInt
  private let wake: CInt
  private let registrations = Mutex<[Registration]>([])
  private let phase = Mutex<Phase>(.idle)
  /// Signalled when the loop has parked or ended.
  private let changed: CInt

  public init() throws(HostError) {
    epoll = lx_epoll_create()
    guard epoll >= 0 else { throw HostError(operation: "epoll_create1", errno: -epoll) }
    wake = lx_eventfd(0)
    changed = lx_eventfd(0)
    guard wake >= 0, changed >= 0 else { throw HostError(operation: "eventfd", errno: -min(wake, changed)) }
    let result = lx_epoll_ctl(epoll, EPOLL_CTL_ADD, wake, EPOLLIN.rawValue, UInt64.max)
    guard result >= 0 else { throw HostError(operation: "epoll_ctl", errno: -result) }
  }

  deinit {
    lx_close(changed)
    lx_close(wake)
    lx_close(epoll)
  }

  /// A registered descriptor, for changing what is waited for.
  public struct Source: Sendable {
    fileprivate let descriptor: CInt
    fileprivate let token: UInt64
  }

  /// Waits for `events` (EPOLL* bits; 0 for none yet) on `descriptor` and tells `handler`.
  public func register(
    _ descriptor: CInt, events: UInt32, handler: any EventHandler, tag: UInt32
  ) throws(HostError) -> Source {
    let token = registrations.withLock { table in
      let index = table.firstIndex { $0.handler == nil } ?? table.count
      if index == table.count { table.append(Registration(handler: nil, tag: 0, generation: 0)) }
      let generation = (table[index].generation &+ 1) & 0x7fff_ffff
      table[index] = Registration(handler: handler, tag: tag, generation: generation)
      return UInt64(generation) << 32 | UInt64(index)
    }
    let source = Source(descriptor: descriptor, token: token)
    let result = lx_epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, events, token)
    guard result >= 0 else {
      unregister(source)
      throw HostError(operation: "epoll_ctl", errno: -result)
    }
    return source
  }

  /// Changes the events waited for; a descriptor that has gone is ignored.
  public func setInterest(_ source: Source, events: UInt32) {
    lx_epoll_ctl(epoll, EPOLL_CTL_MOD, source.descriptor, events, source.token)
  }

  /// Stops listening to a descriptor for good.
  public func unregister(_ source: Source) {
    lx_epoll_ctl(epoll, EPOLL_CTL_DEL, source.descriptor, 0, source.token)
    registrations.withLock { $0[Int(source.token & 0xffff_ffff)].handler = nil }
  }

  /// Runs until ``stop()``. The body of the device thread.
  public func run() {
    var events = unsafe [epoll_event](repeating: epoll_event(), count: 64)
    guard enterRunning() else { return }
    // Whoever waits in park() while stop() wins must not wait for ever.
    defer { lx_eventfd_signal(changed) }
    while true {
      let count = unsafe events.withUnsafeMutableBufferPointer { buffer in
        unsafe lx_epoll_wait(epoll, buffer.baseAddress, CInt(buffer.count), -1)
      }
      // EINTR is the only error a valid epoll descriptor and buffer leave possible.
      guard count > 0 else { continue }
      for index in 0..<Int(count) {
        let token = unsafe withUnsafePointer(to: events[index]) { unsafe lx_epoll_token($0) }
        guard token != UInt64.max else { continue }
        let registration = registrations.withLock { $0[Int(token & 0xffff_ffff)] }
        guard UInt64(registration.generation) == token >> 32 else { continue }
        unsafe registration.handler?.ready(tag: registration.tag, events: events[index].events)
      }
      if lx_eventfd_take(wake) > 0, !parkOrStop() { return }
    }
  }

  private func enterRunning() -> Bool {
    phase.withLock { phase in
      switch phase {
      case .idle: phase = .running
      case .stopping: return false
      case .parking:
        // Parked before the loop began: the first wake-up below parks.
        lx_eventfd_signal(wake)
      default: break
      }
      return true
    }
  }

  /// False when the loop is to end.
  private func parkOrStop() -> Bool {
    let parks = phase.withLock { phase in
      if phase == .parking {
        phase = .parked
        return true
      }
      return false
    }
    if parks {
      lx_eventfd_signal(changed)
      while phase.withLock({ $0 == .parked }) { waitReadable(wake) }
    }
    return phase.withLock { $0 != .stopping }
  }

  /// Stops handling events and returns once no handler runs. Not from the device thread.
  public func park() {
    let wasRunning = phase.withLock { phase in
      switch phase {
      case .running:
        phase = .parking
        return true
      default: return false
      }
    }
    guard wasRunning else { return }
    lx_eventfd_signal(wake)
    while phase.withLock({ $0 == .parking }) { waitReadable(changed) }
    _ = lx_eventfd_take(changed)
  }

  /// Goes on after ``park()``.
  public func unpark() {
    phase.withLock { phase in
      if phase == .parked { phase = .running }
    }
    lx_eventfd_signal(wake)
  }

  /// Ends ``run()`` after the handler that runs now, if any. From any thread.
  public func stop() {
    phase.withLock { $0 = .stopping }
    lx_eventfd_signal(wake)
  }

  private func waitReadable(_ descriptor: CInt) {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    _ = unsafe poll(&entry, 1, -1)
    // The wake-up eventfd stays readable until taken; taking it here keeps the loops above from spinning.
    _ = lx_eventfd_take(descriptor)
  }
}
