import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import Synchronization
import Testing

/// Counts the events of its eventfds, and notices two handlers at once or one inside a parked loop.
private final class CountingHandler: EventHandler {
  let descriptors: [CInt]
  let taken = Atomic<Int>(0)
  let running = Atomic<Int>(0)
  let calls = Atomic<Int>(0)
  private let work: @Sendable () -> Void

  init(count: Int = 1, work: @escaping @Sendable () -> Void = {}) {
    descriptors = (0..<count).map { _ in lx_eventfd(0) }
    self.work = work
  }

  deinit { for descriptor in descriptors { lx_close(descriptor) } }

  func ready(tag: UInt32, events: UInt32) {
    running.add(1, ordering: .sequentiallyConsistent)
    taken.add(Int(lx_eventfd_take(descriptors[Int(tag)])), ordering: .sequentiallyConsistent)
    calls.add(1, ordering: .sequentiallyConsistent)
    work()
    running.subtract(1, ordering: .sequentiallyConsistent)
  }

  func register(with loop: EventLoop) throws -> [EventLoop.Source] {
    try descriptors.enumerated().map { tag, descriptor in
      try loop.register(descriptor, events: EPOLLIN.rawValue, handler: self, tag: UInt32(tag))
    }
  }

  var total: Int { taken.load(ordering: .sequentiallyConsistent) }
}

/// Has work whenever it is looked at.
private final class BusyHandler: EventHandler {
  let descriptor = lx_eventfd(0)
  let polls = true
  private let turns = Atomic(0)
  private let work: @Sendable (Int) -> Void

  init(work: @escaping @Sendable (Int) -> Void) { self.work = work }
  deinit { lx_close(descriptor) }

  var turnsSoFar: Int { turns.load(ordering: .relaxed) }

  // Ready again and again until it is polled: that begins with work that follows work closely.
  func ready(tag: UInt32, events: UInt32) {}

  func poll() -> Bool {
    _ = lx_eventfd_take(descriptor)
    work(turns.add(1, ordering: .relaxed).newValue)
    return true
  }
}

@Suite("Event loop", .timeLimit(.minutes(Environment.patience))) struct EventLoopTests {
  let loop: EventLoop

  init() throws { loop = try EventLoop() }

  private func start() throws -> HostThread {
    let loop = loop
    return try HostThread.start(name: "loop") { loop.run() }
  }

  @Test func event_reachesItsHandlerWithItsTag() throws {
    let handler = CountingHandler(count: 3)
    _ = try handler.register(with: loop)
    let thread = try start()
    for descriptor in handler.descriptors { lx_eventfd_signal(descriptor) }
    #expect(waitUntil { handler.total == 3 })
    loop.stop()
    thread.join()
  }

  @Test func stop_beforeRun_runReturnsAtOnce() throws {
    loop.stop()
    try start().join()
  }

  @Test func stop_whileParked_ends() throws {
    let thread = try start()
    loop.park()
    loop.stop()
    thread.join()
  }

  @Test func park_beforeRun_holdsUntilUnparked() throws {
    let handler = CountingHandler()
    _ = try handler.register(with: loop)
    lx_eventfd_signal(handler.descriptors[0])
    loop.park()
    let thread = try start()
    // The thread may be late to start; were it not parked, it would take the event as soon as it runs.
    #expect(staysTrue(for: 0.05) { handler.total == 0 }, "a handler ran in a parked loop")
    loop.unpark()
    #expect(waitUntil { handler.total == 1 })
    loop.stop()
    thread.join()
  }

  @Test func park_whileAHandlerRuns_waitsForIt() throws {
    let entered = Flag()
    let handler = CountingHandler {
      entered.set()
      usleep(50_000)  // long work, in the middle of which the park comes
    }
    _ = try handler.register(with: loop)
    let thread = try start()
    lx_eventfd_signal(handler.descriptors[0])
    #expect(waitUntil { entered.isSet })
    loop.park()
    #expect(handler.running.load(ordering: .sequentiallyConsistent) == 0)
    loop.unpark()
    loop.stop()
    thread.join()
  }

  /// However many descriptors are ready: who parks waits for one handler.
  @Test func park_inTheMiddleOfABatch_comesBeforeTheRest() throws {
    let isFirst = Atomic(true)
    let handler = CountingHandler(count: 8) { [loop] in
      if isFirst.exchange(false, ordering: .relaxed) { loop.beginParking() }
    }
    _ = try handler.register(with: loop)
    for descriptor in handler.descriptors { lx_eventfd_signal(descriptor) }
    let thread = try start()
    #expect(waitUntil { handler.total > 0 })
    loop.park()
    #expect(handler.total == 1)
    loop.unpark()
    #expect(waitUntil { handler.total == 8 }, "the rest is not forgotten")
    loop.stop()
    thread.join()
  }

  /// A queue that never runs dry, each visit to which takes its time.
  @Test func polling_ofLongVisits_letsOthersIn() throws {
    let other = CountingHandler()
    let busy = BusyHandler { turn in
      if turn == 3 { lx_eventfd_signal(other.descriptors[0]) }
      usleep(2000)  // twice a visit's time
    }
    _ = try other.register(with: loop)
    _ = try loop.register(busy.descriptor, events: EPOLLIN.rawValue, handler: busy, tag: 0)
    lx_eventfd_signal(busy.descriptor)
    let thread = try start()
    #expect(waitUntil { other.total == 1 })
    // Another visit may be under way by the time that is known.
    #expect(busy.turnsSoFar <= 5)
    loop.stop()
    thread.join()
  }

  @Test func park_fromTwoThreads_bothWaitForTheHandler() throws {
    let entered = Flag()
    let handler = CountingHandler {
      entered.set()
      usleep(50_000)  // long work, in the middle of which the park comes
    }
    _ = try handler.register(with: loop)
    let thread = try start()
    lx_eventfd_signal(handler.descriptors[0])
    #expect(waitUntil { entered.isSet })
    let wrong = Flag()
    let parkers = try (0..<2).map { _ in
      try HostThread.start(name: "parker") { [loop] in
        loop.park()
        if handler.running.load(ordering: .sequentiallyConsistent) != 0 { wrong.set() }
      }
    }
    for parker in parkers { parker.join() }
    #expect(!wrong.isSet)
    loop.unpark()
    loop.stop()
    thread.join()
  }

  /// Parks and unparks as fast as it goes, under a stream of events: park never hangs, no handler runs while it holds,
  /// and no event is lost.
  @Test func park_stress_neverHangsAndLosesNothing() throws {
    let handler = CountingHandler(count: 4)
    _ = try handler.register(with: loop)
    let thread = try start()
    let stop = Flag()
    let sender = try sendEvents(to: handler, until: stop)
    let deadline = Deadline(seconds: 3)
    var rounds = 0
    while !deadline.passed, rounds < 20_000 {
      loop.park()
      let before = handler.calls.load(ordering: .sequentiallyConsistent)
      if handler.running.load(ordering: .sequentiallyConsistent) != 0 { Issue.record("a handler runs while parked") }
      if rounds % 64 == 0 { usleep(200) }  // time for a handler that shouldn't run
      if handler.calls.load(ordering: .sequentiallyConsistent) != before { Issue.record("a handler ran while parked") }
      loop.unpark()
      rounds += 1
    }
    stop.set()
    sender.thread.join()
    #expect(waitUntil { handler.total == sender.count.value.load(ordering: .sequentiallyConsistent) })
    loop.stop()
    thread.join()
    #expect(rounds > 100)
  }

  private final class Count: Sendable { let value = Atomic<Int>(0) }

  private func sendEvents(to handler: CountingHandler, until stop: Flag) throws -> (thread: HostThread, count: Count) {
    let count = Count()
    let thread = try HostThread.start(name: "sender") {
      var index = 0
      while !stop.isSet {
        lx_eventfd_signal(handler.descriptors[index % handler.descriptors.count])
        count.value.add(1, ordering: .sequentiallyConsistent)
        index += 1
        if index % 128 == 0 { usleep(50) }  // leaves the loop a share of one core
      }
    }
    return (thread, count)
  }

  /// The same with nothing else to wake the loop: an unpark followed at once by a park must not lose the second.
  @Test func park_rightAfterUnpark_idleLoop_neverHangs() throws {
    let thread = try start()
    let done = Flag()
    let parker = try HostThread.start(name: "parker") { [loop] in
      for _ in 0..<5_000 {
        loop.park()
        loop.unpark()
      }
      done.set()
    }
    let finished = waitUntil(seconds: 20) { done.isSet }
    #expect(finished, "park() hangs")
    loop.stop()
    // stop() also ends a park that hangs.
    parker.join()
    thread.join()
  }

  @Test func stop_fromManyThreadsUnderLoad_ends() throws {
    let handler = CountingHandler(count: 4)
    _ = try handler.register(with: loop)
    let thread = try start()
    let stop = Flag()
    let sender = try sendEvents(to: handler, until: stop)
    #expect(waitUntil { handler.total > 1000 })
    let stoppers = try (0..<4).map { _ in try HostThread.start(name: "stopper") { [loop] in loop.stop() } }
    for stopper in stoppers { stopper.join() }
    thread.join()
    stop.set()
    sender.thread.join()
    #expect(handler.running.load(ordering: .sequentiallyConsistent) == 0)
  }

  @Test func unregistered_descriptor_isNotHeardOfAgain() throws {
    let handler = CountingHandler(count: 2)
    let sources = try handler.register(with: loop)
    loop.unregister(sources[0])
    let thread = try start()
    lx_eventfd_signal(handler.descriptors[0])
    lx_eventfd_signal(handler.descriptors[1])
    #expect(waitUntil { handler.total == 1 })
    #expect(staysTrue(for: 0.02) { handler.total == 1 }, "the other's event would have come in the same visit")
    loop.stop()
    thread.join()
  }

  /// A place in the table that has been given away is not emptied by its former owner.
  @Test func unregister_twice_leavesTheNewOwnerAlone() throws {
    let old = CountingHandler()
    let sources = try old.register(with: loop)
    loop.unregister(sources[0])
    let new = CountingHandler()
    _ = try new.register(with: loop)
    loop.unregister(sources[0])
    let thread = try start()
    lx_eventfd_signal(new.descriptors[0])
    #expect(waitUntil { new.total == 1 })
    loop.stop()
    thread.join()
  }

  @Test func registered_whileRunning_isHeard() throws {
    let thread = try start()
    for _ in 0..<50 {
      let handler = CountingHandler()
      let sources = try handler.register(with: loop)
      lx_eventfd_signal(handler.descriptors[0])
      #expect(waitUntil { handler.total == 1 })
      loop.unregister(sources[0])
    }
    loop.stop()
    thread.join()
  }

  @Test func interest_changedFromAnotherThread_counts() throws {
    let handler = CountingHandler()
    let source = try handler.register(with: loop)[0]
    let thread = try start()
    loop.setInterest(source, events: 0)
    lx_eventfd_signal(handler.descriptors[0])
    #expect(staysTrue(for: 0.02) { handler.total == 0 }, "an event of no interest")
    loop.setInterest(source, events: EPOLLIN.rawValue)
    #expect(waitUntil { handler.total == 1 })
    loop.stop()
    thread.join()
  }

  @Test func register_regularFile_throwsEPERM() throws {
    let directory = try TemporaryDirectory()
    let fd = unsafe lx_open(directory.file("output"), O_CREAT | O_RDWR, 0o600)
    defer { lx_close(fd) }
    #expect(throws: HostError(operation: "epoll_ctl", errno: EPERM)) {
      try loop.register(fd, events: EPOLLIN.rawValue, handler: CountingHandler(), tag: 0)
    }
  }
}
