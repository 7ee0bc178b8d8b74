internal import CLinux
internal import Glibc
internal import Synchronization

/// What a descriptor's readiness is told to. Called on the device thread only.
public protocol EventHandler: AnyObject, Sendable {
  /// - Parameters:
  ///   - tag: the number given at registration (such as a queue index).
  ///   - events: EPOLL* bits.
  func ready(tag: UInt32, events: UInt32)
  /// Whether work often comes so soon after work that looking for it beats being told.
  var polls: Bool { get }
  /// Looks for work that nobody was told of; true when there was some. From the first call until ``rest()`` nobody needs
  /// to be told.
  func poll() -> Bool
  /// Ends a time of ``poll()``: asks to be told again, and does what came in between.
  func rest()
}

extension EventHandler {
  public var polls: Bool { false }
  public func poll() -> Bool { false }
  public func rest() {}
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
  /// What the control side wants, and what the loop has made of it: the loop alone changes the second.
  private struct Control {
    enum Wish { case run, park, stop }
    enum State {
      case idle
      /// Handlers may run.
      case running
      /// In epoll_wait: no handler runs before the wish has been looked at, so that parking it needs no wake-up.
      case waiting
      case parked, ended
    }
    var wish = Wish.run
    var state = State.idle
  }

  /// A handler is watched when its last work was at most so long ago, in nanoseconds, and then for so long.
  private static let watchedGap: UInt64 = 200_000
  private static let watchTime: UInt64 = 50_000

  private let hasSeveralCPUs = sysconf(CInt(_SC_NPROCESSORS_ONLN)) > 1
  private let epoll: CInt
  private let wake: CInt
  private let registrations = Mutex<[Registration]>([])
  private let control = Mutex(Control())
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
    registrations.withLock { table in
      let index = Int(source.token & 0xffff_ffff)
      // The place may have another owner by now.
      if UInt64(table[index].generation) == source.token >> 32 { table[index].handler = nil }
    }
  }

  /// Lets go of every handler: handlers that hold their loop would keep each other. After ``run()`` has ended for good.
  public func removeAll() {
    let handlers = registrations.withLock { table in
      defer { for index in table.indices { table[index].handler = nil } }
      return table.map(\.handler)
    }
    // Not under the lock: what goes now may want to unregister.
    withExtendedLifetime(handlers) {}
  }

  /// Runs until ``stop()``. The body of the device thread.
  public func run() {
    var events = unsafe [epoll_event](repeating: epoll_event(), count: 64)
    var recent = Recent()
    while true {
      wait()
      let count = unsafe events.withUnsafeMutableBufferPointer { buffer in
        unsafe lx_epoll_wait(epoll, buffer.baseAddress, CInt(buffer.count), -1)
      }
      guard settle() else { return }
      // EINTR is the only error a valid epoll descriptor and buffer leave possible.
      guard count > 0 else { continue }
      var busy: (any EventHandler)?
      for index in 0..<Int(count) {
        let token = unsafe withUnsafePointer(to: events[index]) { unsafe lx_epoll_token($0) }
        guard token != UInt64.max else {
          _ = lx_eventfd_take(wake)
          continue
        }
        let registration = registrations.withLock { $0[Int(token & 0xffff_ffff)] }
        guard UInt64(registration.generation) == token >> 32 else { continue }
        guard let handler = registration.handler else { continue }
        unsafe handler.ready(tag: registration.tag, events: events[index].events)
        if handler.polls { busy = handler }
        // What is left of the batch is reported again.
        if control.withLock({ $0.wish != .run }) { break }
      }
      if let busy { watch(busy, &recent) }
    }
  }

  /// Polls a handler that works again and again, until nothing has come for a while or another descriptor is ready. A
  /// request found this way costs the guest no exit and this thread no sleep.
  private func watch(_ handler: any EventHandler, _ recent: inout Recent) {
    let before = recent.work
    recent.work = lx_monotonic_ns()
    // Work that comes rarely is waited for; on one CPU the guest needs the time itself.
    guard hasSeveralCPUs, recent.work - before < Self.watchedGap else { return }
    guard recent.skips == 0 else { return recent.skips -= 1 }
    var event = unsafe epoll_event()
    var turns = 0
    var found = false
    var looked = recent.work
    while true {
      let now = lx_monotonic_ns()
      if handler.poll() {
        recent.work = now
        found = true
      } else if now - recent.work > Self.watchTime {
        break
      }
      turns &+= 1
      // A wish to park is such a descriptor.
      if turns % 16 == 0 || now - looked > Visit.time {
        looked = now
        if unsafe lx_epoll_wait(epoll, &event, 1, 0) != 0 { break }
      }
    }
    handler.rest()
    // In vain: perhaps the guest can't run while we look, because other work has the host's other CPUs.
    recent.misses = found ? 0 : min(recent.misses + 1, 8)
    recent.skips = found ? 0 : 1 << recent.misses
  }

  private struct Recent {
    /// When a polled handler last worked.
    var work: UInt64 = 0
    /// Times in a row that looking found nothing, and how many chances to look are let pass because of that.
    var misses = 0
    var skips = 0
  }

  /// No handler runs from here on until ``settle()``; who waits for that is told.
  private func wait() {
    let isAwaited = control.withLock { control in
      control.state = .waiting
      return control.wish == .park
    }
    if isAwaited { lx_eventfd_signal(changed) }
  }

  /// Does as wished, and stays here while parked; false when the loop is to end. The wish is looked at again after
  /// every wake-up: an unpark followed at once by another park is one wake-up.
  private func settle() -> Bool {
    while true {
      let wish = control.withLock { control in
        switch control.wish {
        case .run: control.state = .running
        case .park: control.state = .parked
        case .stop: control.state = .ended
        }
        return control.wish
      }
      if wish == .run { return true }
      lx_eventfd_signal(changed)
      if wish == .stop { return false }
      HostThread.waitReadable(wake)
      _ = lx_eventfd_take(wake)
    }
  }

  /// Has ``park()`` wait for less.
  public func beginParking() {
    let isRunning = control.withLock { control in
      if control.wish == .run { control.wish = .park }
      return control.state == .running
    }
    if isRunning { lx_eventfd_signal(wake) }
  }

  /// Stops handling events and returns once no handler runs; before ``run()``, keeps it from starting. Not from the
  /// device thread.
  public func park() {
    beginParking()
    while control.withLock({ $0.state == .running }) {
      // Of several threads that wait here one takes the signal; the others look again soon.
      HostThread.waitReadable(changed, timeoutMilliseconds: 10)
      _ = lx_eventfd_take(changed)
    }
  }

  /// Goes on after ``park()``.
  public func unpark() {
    let isParked = control.withLock { control in
      if control.wish == .park { control.wish = .run }
      return control.state == .parked
    }
    if isParked { lx_eventfd_signal(wake) }
  }

  /// Ends ``run()`` after the handler that runs now, if any. From any thread.
  public func stop() {
    control.withLock { $0.wish = .stop }
    lx_eventfd_signal(wake)
  }
}
