internal import CLinux
internal import Synchronization

/// Threads for disk work that waits (cache misses, FLUSH, DISCARD), so that the device thread never does.
///
/// Work is a slot number; at most ``capacity`` are under way, because each belongs to a descriptor chain in flight.
final class DiskWorkers: Sendable {
  private struct Queues {
    var waiting: [Int] = []
    var finished: [Int] = []
    var running = 0
    var stopping = false
  }

  /// Readable while finished slots wait to be taken.
  let finishedDescriptor: CInt
  private let work: CInt
  private let idle: CInt
  private let queues: Mutex<Queues>
  private let threads = Mutex<[HostThread]>([])
  private let count: Int
  private let onStart: @Sendable () -> Void
  private let body: @Sendable (Int) -> Void

  /// - Parameters:
  ///   - count: of threads, once started.
  ///   - onStart: runs first on each of them.
  ///   - body: does the work of a slot, on a worker thread.
  init(
    count: Int, capacity: Int, onStart: @escaping @Sendable () -> Void, body: @escaping @Sendable (Int) -> Void
  ) throws(HostError) {
    self.count = count
    self.onStart = onStart
    self.body = body
    finishedDescriptor = lx_eventfd(0)
    work = lx_eventfd(0)
    idle = lx_eventfd(0)
    var empty = Queues()
    empty.waiting.reserveCapacity(capacity)
    empty.finished.reserveCapacity(capacity)
    queues = Mutex(empty)
    guard finishedDescriptor >= 0, work >= 0, idle >= 0 else {
      throw HostError(operation: "eventfd", errno: -min(finishedDescriptor, work, idle))
    }
  }

  /// Starts the threads. Once: a process that changes its user must have done so before, because each thread that exists
  /// then has to make the same system calls, which their filters deny.
  func start() throws(HostError) {
    for _ in 0..<count {
      let thread = try HostThread.start(name: "disk") { [self] in
        onStart()
        run(body)
      }
      threads.withLock { $0.append(thread) }
    }
  }

  // The threads hold this object: here they have ended.
  deinit {
    for descriptor in [finishedDescriptor, work, idle] { lx_close(descriptor) }
  }

  func submit(_ slot: Int) {
    queues.withLock { $0.waiting.append(slot) }
    lx_eventfd_signal(work)
  }

  /// Moves the finished slots into `slots`, oldest first.
  func takeFinished(into slots: inout [Int]) {
    _ = lx_eventfd_take(finishedDescriptor)
    queues.withLock { queues in
      slots.append(contentsOf: queues.finished)
      queues.finished.removeAll(keepingCapacity: true)
    }
  }

  /// Returns when nothing waits or runs; finished slots may be left to take.
  func drain() {
    while queues.withLock({ !$0.waiting.isEmpty || $0.running != 0 }) {
      HostThread.waitReadable(idle)
      _ = lx_eventfd_take(idle)
    }
  }

  /// Ends the threads after the work at hand.
  func stop() {
    queues.withLock { $0.stopping = true }
    lx_eventfd_signal(work)
    for thread in threads.withLock({ $0 }) { thread.join() }
  }

  private func run(_ body: (Int) -> Void) {
    while true {
      let slot = queues.withLock { queues -> Int? in
        guard !queues.stopping, !queues.waiting.isEmpty else { return nil }
        queues.running += 1
        return queues.waiting.removeFirst()
      }
      guard let slot else {
        if queues.withLock({ $0.stopping }) { return }
        HostThread.waitReadable(work)
        // Taken by one worker only; it passes the signal on while there is more.
        if lx_eventfd_take(work) != 0, queues.withLock({ $0.waiting.count > 1 || $0.stopping }) {
          lx_eventfd_signal(work)
        }
        continue
      }
      body(slot)
      queues.withLock { queues in
        queues.running -= 1
        queues.finished.append(slot)
      }
      lx_eventfd_signal(finishedDescriptor)
      lx_eventfd_signal(idle)
    }
  }
}
