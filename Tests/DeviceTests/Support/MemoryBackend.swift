import CLinux
import Devices
import Glibc
import GuestMemory
import Synchronization
import VirtioLayout

/// A network back end in memory: what it was sent, what it is to deliver, and whether it is full or gone.
final class MemoryBackend: FrameBackend {
  struct Sent: Equatable, Sendable {
    var header: [UInt8]
    var frame: [UInt8]
  }

  private struct State {
    var incoming: [[UInt8]] = []
    var sent: [Sent] = []
    var full = false
    var gone = false
    /// Calls of flush() until the rest of the last frame has left; 0 when it has.
    var rest = 0
    var restOfNext = 0
    var guestOffloads: UInt64 = 0
    var receivedSinceEnd = 0
  }

  let descriptor: CInt
  let offloads: UInt64
  private let state = Mutex(State())
  private let onSend = Mutex<(@Sendable () -> Void)?>(nil)

  /// Of one that tells of room by that.
  let room: CInt?

  init(offloads: UInt64 = 0, tellsOfRoom: Bool = false) throws {
    descriptor = lx_eventfd(0)
    room = tellsOfRoom ? lx_eventfd(0) : nil
    guard descriptor >= 0 else { throw HostError(operation: "eventfd", errno: -descriptor) }
    self.offloads = offloads
  }

  deinit {
    lx_close(descriptor)
    if let room { lx_close(room) }
  }

  static let allOffloads =
    NetFeature.checksum | NetFeature.guestChecksum | NetFeature.guestTSO4 | NetFeature.guestTSO6
    | NetFeature.hostTSO4 | NetFeature.hostTSO6

  var sent: [Sent] { state.withLock { $0.sent } }
  var waiting: Int { state.withLock { $0.incoming.count } }
  /// Frames received behind which no end was told of.
  var receivedSinceEnd: Int { state.withLock { $0.receivedSinceEnd } }
  var guestOffloads: UInt64 { state.withLock { $0.guestOffloads } }
  var isFull: Bool {
    get { state.withLock { $0.full } }
    set { state.withLock { $0.full = newValue } }
  }
  /// A part of an earlier frame has not left yet.
  var hasRest: Bool {
    state.withLock { $0.rest > 0 }
  }
  /// The next frame is taken in part, and the rest of it by the `count`th flush.
  func keepRest(flushes count: Int) { state.withLock { $0.restOfNext = count } }
  func lose() { state.withLock { $0.gone = true } }
  /// Runs at the start of each send: another vCPU that changes the frame meanwhile.
  func beforeSend(_ body: @escaping @Sendable () -> Void) { onSend.withLock { $0 = body } }

  /// A frame for the guest, behind `header` or an empty one.
  func deliver(_ frame: [UInt8], header: [UInt8] = [UInt8](repeating: 0, count: 12)) {
    state.withLock { $0.incoming.append(header + frame) }
    lx_eventfd_signal(descriptor)
  }

  func clear() { state.withLock { $0.incoming = [] } }

  func setGuestOffloads(_ features: UInt64) { state.withLock { $0.guestOffloads = features } }

  func send(
    _ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory
  ) -> SendResult {
    onSend.withLock { $0 }?()
    return state.withLock { state in
      if state.gone { return .dropped }
      if state.full || state.rest > 0 { return .full }
      var bytes = [UInt8](repeating: 0, count: Int(count))
      let got = unsafe bytes.withUnsafeMutableBytes { unsafe memory.gather(frame, offset: offset, into: $0) }
      if state.sent.count < 100_000 { state.sent.append(Sent(header: header, frame: Array(bytes.prefix(got)))) }
      state.rest = state.restOfNext
      state.restOfNext = 0
      return .sent
    }
  }

  func flush() -> Bool {
    state.withLock { state in
      state.rest = max(state.rest - 1, 0)
      return state.rest == 0
    }
  }

  func receivingEnded() { state.withLock { $0.receivedSinceEnd = 0 } }

  func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    state.withLock { state in
      if state.gone { return -Int(ENODEV) }
      guard !state.incoming.isEmpty else {
        _ = lx_eventfd_take(descriptor)
        return 0
      }
      let packet = state.incoming.removeFirst()
      state.receivedSinceEnd += 1
      unsafe buffer.copyBytes(from: packet)
      return packet.count
    }
  }
}

/// `count` bytes that differ from frame to frame.
func testFrame(_ number: Int, _ count: Int) -> [UInt8] {
  (0..<count).map { UInt8(truncatingIfNeeded: number &* 7 &+ $0) }
}

extension TestDriver {
  /// Tells the card what epoll would: that its back end has something (or room).
  func backendReady(_ events: UInt32 = EPOLLIN.rawValue) {
    mmio.ready(tag: VirtioMMIO.deviceTag, events: events)
    run()
  }
}
