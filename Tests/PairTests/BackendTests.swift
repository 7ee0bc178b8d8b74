import CLinux
import Devices
import Glibc
import GuestMemory
import Pair
import Replication
import Synchronization
import Testing

/// A wire without a network: frames that a test puts come in.
final class Wire: FrameBackend {
  let descriptor = lx_eventfd(0)
  private let frames = Mutex<[[UInt8]]>([])
  private let onEmpty = Mutex<(@Sendable () -> Void)?>(nil)

  deinit { lx_close(descriptor) }

  /// Runs once, when it is found that nothing waits.
  func onceEmpty(_ body: @escaping @Sendable () -> Void) { onEmpty.withLock { $0 = body } }

  func put(_ frame: [UInt8]) { frames.withLock { $0.append(frame) } }

  var offloads: UInt64 { 0 }
  func setGuestOffloads(_ features: UInt64) {}
  func flush() -> Bool { true }
  func send(
    _ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory
  ) -> SendResult { .sent }

  func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    guard let frame = frames.withLock({ $0.isEmpty ? nil : $0.removeFirst() }) else {
      onEmpty.withLock { $0.take() }?()
      return 0
    }
    unsafe frame.withUnsafeBytes { unsafe buffer.copyMemory(from: $0) }
    return frame.count
  }
}

/// What the engine of a side was told of input.
private final class Told: PairTraffic {
  struct Input: Equatable { var number: UInt64, frame: [UInt8] }
  private let inputs = Mutex<[Input]>([])

  private let full = Mutex(0)
  private let flushes = Mutex(0)

  let room = Atomic(true)
  var hasRoomForInput: Bool { room.load(ordering: .relaxed) }
  var input: [Input] { inputs.withLock { $0 } }
  var fullTimes: Int { full.withLock { $0 } }
  var flushTimes: Int { flushes.withLock { $0 } }

  func input(_ number: UInt64, _ frame: UnsafeRawBufferPointer) {
    let bytes = unsafe Array(frame)
    inputs.withLock { $0.append(Input(number: number, frame: bytes)) }
  }
  func output(_ token: UInt64?, _ frame: UnsafeRawBufferPointer, _ marking: Marking) {}
  func leavesEarly(_ frame: UnsafeRawBufferPointer) -> UInt64? { nil }
  func started(_ frame: UnsafeRawBufferPointer) {}
  func gateIsFull() { full.withLock { $0 += 1 } }
  func flush() { flushes.withLock { $0 += 1 } }
  func outputEnded() {}
}

@Suite("A pair's card") struct BackendTests {
  private static func frame(_ number: UInt8) -> [UInt8] { [UInt8](repeating: number, count: 60) }

  private static func receive(_ backend: PairBackend) -> [UInt8] {
    var buffer = [UInt8](repeating: 0, count: 2048)
    let count = unsafe buffer.withUnsafeMutableBytes { unsafe backend.receive(into: $0) }
    return Array(buffer.prefix(max(0, count)))
  }

  /// A survivor that is protected again while its log is not empty: its secondary must have every frame that the guest is
  /// given after the first cut, wherever it comes from, or what the guest answers may leave before the secondary can know.
  @Test func survivorsLog_isInputOfItsSecondary() throws {
    let (wire, told) = (Wire(), Told())
    let gate = OutputGate(mode: .colo, clock: { 0 }, send: { _ in true })
    let backend = try PairBackend(tap: wire, side: .following, gate: gate, log: InputLog(), traffic: Told())
    for number in 1...4 as ClosedRange<UInt8> { try backend.log.append(UInt64(number), Self.frame(number)) }
    #expect(Self.receive(backend) == Self.frame(1))
    backend.serve(told)
    #expect(Self.receive(backend) == Self.frame(2))
    #expect(told.input == [], "nobody follows yet")
    backend.beginForwarding()
    wire.put(Self.frame(5))
    for number in 3...5 as ClosedRange<UInt8> {
      #expect(Self.receive(backend) == Self.frame(number))
      #expect(backend.given == UInt64(number) - 2)
    }
    #expect(told.flushTimes == 0, "once for all")
    backend.receivingEnded()
    #expect(told.flushTimes == 1)
    #expect(told.input == (3...5).map { Told.Input(number: UInt64($0) - 2, frame: Self.frame($0)) })
  }

  /// While the secondary can keep no more, the wire is not read, and nobody is woken by it: it drops what is too much.
  @Test func withoutRoomForInput_theWireWaits() throws {
    let (wire, told) = (Wire(), Told())
    let gate = OutputGate(mode: .colo, clock: { 0 }, send: { _ in true })
    let backend = try PairBackend(tap: wire, side: .serving, gate: gate, log: InputLog(), traffic: told)
    backend.beginForwarding()
    func wakes() -> Bool {
      var entry = pollfd(fd: backend.descriptor, events: Int16(POLLIN), revents: 0)
      return unsafe poll(&entry, 1, 0) == 1
    }
    wire.put(Self.frame(1))
    told.room.store(false, ordering: .relaxed)
    #expect(Self.receive(backend) == [] && told.input == [])
    lx_eventfd_signal(wire.descriptor)
    #expect(!wakes())
    told.room.store(true, ordering: .relaxed)
    backend.readAgain()
    #expect(wakes() && Self.receive(backend) == Self.frame(1))
  }

  /// The wake-up is read once for many frames: what comes before that, and is not signalled again, must not be missed.
  @Test func wakeUp_isReadOnceABatch_andNothingIsMissed() throws {
    let wire = Wire()
    let gate = OutputGate(mode: .colo, clock: { 0 }, send: { _ in true })
    let backend = try PairBackend(tap: wire, side: .serving, gate: gate, log: InputLog(), traffic: Told())
    func isReadable() -> Bool {
      var entry = pollfd(fd: backend.descriptor, events: Int16(POLLIN), revents: 0)
      return unsafe poll(&entry, 1, 0) == 1
    }
    for number in 1...2 as ClosedRange<UInt8> { try backend.log.append(UInt64(number), Self.frame(number)) }
    backend.signal()
    wire.onceEmpty {
      try? backend.log.append(3, Self.frame(3))
      backend.signal()
    }
    for number in 1...3 as ClosedRange<UInt8> { #expect(Self.receive(backend) == Self.frame(number)) }
    #expect(Self.receive(backend) == [] && !isReadable())
    backend.signal()
    #expect(isReadable())
  }

  /// What may leave and was not sent yet takes room: it is sent before the guest has to wait, and before anybody is asked for a
  /// checkpoint.
  @Test func whatMayLeave_makesRoomFirst() throws {
    let told = Told()
    let left = Atomic(0)
    let gate = OutputGate(
      mode: .colo, frameLimit: 2, clock: { 0 },
      send: { _ in
        left.add(1, ordering: .relaxed)
        return true
      })
    let backend = try PairBackend(tap: Wire(), side: .serving, gate: gate, log: InputLog(), traffic: told)
    gate.protect()
    let memory = try GuestMemory(size: 1 << 20)
    var buffers = GuestBuffers()
    _ = buffers.append(address: 0x1000, count: 60, in: memory)
    func send() -> SendResult {
      backend.send([UInt8](repeating: 0, count: 12), buffers, offset: 0, count: 60, memory: memory)
    }
    #expect([send(), send()] == [.sent, .sent])
    gate.compared([0, 1] as [UInt64], .equal)
    #expect(left.load(ordering: .relaxed) == 0)
    #expect([send(), send()] == [.sent, .sent])
    #expect(left.load(ordering: .relaxed) == 2 && told.fullTimes == 0)
    #expect(send() == .full && told.fullTimes == 1)
    #expect(!backend.flush(), "it waits")
    gate.compared([2] as [UInt64], .equal)
    gate.flush()
    backend.roomMade()
    #expect(backend.room.map { lx_eventfd_take($0) } == 1 && backend.flush())
    #expect(send() == .sent)
  }
}
