internal import CLinux
internal import Glibc
internal import Synchronization

/// A connected stream socket on which two sides that share a key exchange authenticated messages.
///
///     greeting: magic "MVMMPAIR"  version:4  nonce:32                        both, at once
///     proof:    HMAC-SHA-256(key, "proof" · role · own nonce · other nonce)  both
///     then:     { length:4  { length:4  message }…  UMAC-128(direction's key, number, length · messages):16 }…
///
/// The keys of the directions come from the shared one and both nonces (HKDF), so nothing of another session, direction or
/// position is taken. A record holds what waited when it was made: its cost is shared by its messages.
///
/// ``send(_:)`` and ``sendBulk(_:)`` are for any thread, and go to the socket at once where nobody else is at it and it has room;
/// one thread sends the rest, one receives.
public final class Channel: Sendable {
  public enum Side: UInt8, Sendable { case primary = 1, secondary = 2 }

  public static let version: UInt32 = 8
  static let macSize = RecordCode.size

  /// Bytes of messages after which another record is begun.
  static let recordSize = 64 << 10
  /// What a peer may make us allocate for a record.
  private static let recordLimit = Message.limit + recordSize

  /// The record that is being sent.
  private struct Wire: ~Copyable {
    var code: RecordCode
    var number: UInt64 = 0
    var record: [UInt8] = []
    var sent = 0
    /// How many urgent messages are with the kernel once the record is.
    var urgent: UInt64 = 0
    var failure: ChannelError?
  }

  /// What has been received and not yet taken.
  private struct Reader: ~Copyable {
    var code: RecordCode
    var number: UInt64 = 0
    var bytes: [UInt8] = []
    var start = 0
    var end = 0
    /// Messages of a record that has proved authentic.
    var messages = 0..<0
  }

  private let descriptor: CInt
  let keys: Keys
  let queue = Mutex(Queue())
  /// An eventfd: something waits to be sent.
  private let wake: CInt
  /// An eventfd: bulk was sent.
  private let room: CInt
  private let wire: Mutex<Wire>
  private let reader: Mutex<Reader>
  private let sent = Atomic<UInt64>(0)
  private let urgentSent = Atomic<UInt64>(0)
  private let heard = Atomic<UInt64>(0)
  private let damage = Atomic<UInt8>(0)
  /// Bytes that may wait to be sent; a peer that does not read must not fill our memory.
  public let queueLimit: Int

  /// Milliseconds for a whole handshake.
  public static let handshakeTime: UInt64 = 2000

  /// Shakes hands on a connected socket, which it then owns. Blocks for ``timeout`` at most.
  /// - Parameter timeout: milliseconds for the whole handshake.
  public convenience init(
    descriptor: CInt, side: Side, key: SharedKey, timeout: UInt64 = handshakeTime, queueLimit: Int = 256 << 20
  ) throws(ChannelError) {
    let deadline = lx_monotonic_ns() + timeout * 1_000_000
    var keys: Keys?
    // What fails here has no deinit.
    do throws(ChannelError) {
      let handshake = try Handshake(descriptor, side, key)
      while keys == nil {
        keys = try handshake.proceed()
        let now = lx_monotonic_ns()
        guard keys != nil || now < deadline else { throw .timedOut }
        if keys == nil { HostWait.readable(descriptor, timeout: CInt((deadline - now) / 1_000_000) + 1) }
      }
    } catch {
      lx_close(descriptor)
      throw error
    }
    guard let keys else { throw .timedOut }
    try self.init(descriptor: descriptor, keys: keys, queueLimit: queueLimit)
  }

  /// A socket whose handshake is done.
  init(descriptor: CInt, keys: Keys, queueLimit: Int = 256 << 20) throws(ChannelError) {
    let (wake, room) = (lx_eventfd(0), lx_eventfd(0))
    guard wake >= 0, room >= 0 else {
      for opened in [descriptor, wake, room] where opened >= 0 { lx_close(opened) }
      throw .system(operation: "eventfd", errno: -min(wake, room))
    }
    self.keys = keys
    self.descriptor = descriptor
    self.queueLimit = queueLimit
    wire = Mutex(Wire(code: RecordCode(keys.send)))
    reader = Mutex(Reader(code: RecordCode(keys.receive)))
    self.wake = wake
    self.room = room
  }

  deinit {
    lx_close(descriptor)
    lx_close(wake)
    lx_close(room)
  }

  // MARK: Any thread

  /// Sends a message that must not wait; in order among its like.
  public func send(_ message: Message) throws(ChannelError) {
    unsafe try enqueue(message.encoded, Self.nothing, urgent: true)
    flush()
  }

  /// Queues a message that must not wait for long: until the next ``flush()`` or ``send(_:)``.
  public func post(_ message: Message) throws(ChannelError) {
    unsafe try enqueue(message.encoded, Self.nothing, urgent: true)
  }

  /// ``post(_:)`` of a message with a frame, which is copied once.
  public func post(
    _ kind: FrameMessage, card: UInt8, number: UInt64, frame: UnsafeRawBufferPointer
  ) throws(ChannelError) {
    unsafe try enqueue(kind.head(card: card, number: number, count: frame.count), frame, urgent: true)
    // Much need not wait for more.
    if queue.withLock({ $0.urgent.count > 1 }) { flush() }
  }

  /// Has the sending thread send what was posted: for threads that may not.
  public func wakeSender() { lx_eventfd_signal(wake) }

  /// Sends what is urgent, as far as the socket takes it; the sending thread does the rest.
  /// - Parameter records: how many at the most: others may queue as fast as this thread sends.
  public func flush(atMost records: Int = .max) {
    if wire.withLockIfAvailable({ transmit(&$0, bulk: false, atMost: records) }) != true { lx_eventfd_signal(wake) }
  }

  /// Queues a message behind everything urgent, and waits while much bulk is queued. In order among its like.
  public func sendBulk(_ message: Message) throws(ChannelError) {
    var progress = Progress(self)
    while queue.withLock({ !$0.isClosed && $0.takesBulk && $0.bulk.count >= 8 }) {
      HostWait.readable(room, timeout: 100)
      _ = lx_eventfd_take(room)
      guard progress.continues() else { throw .sendQueueFull }
    }
    unsafe try enqueue(message.encoded, Self.nothing, urgent: false)
    if wire.withLockIfAvailable({ transmit(&$0, bulk: true) }) != true { lx_eventfd_signal(wake) }
  }

  private static var nothing: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: nil, count: 0) }

  private func enqueue(
    _ head: [UInt8], _ rest: UnsafeRawBufferPointer, urgent: Bool
  ) throws(ChannelError) {
    let failure: ChannelError? = queue.withLock { queue in
      if queue.isClosed || !urgent && !queue.takesBulk { return .closed }
      guard queue.bytes + head.count + rest.count <= queueLimit else { return .sendQueueFull }
      unsafe queue.append(head, rest, urgent: urgent)
      return nil
    }
    if let failure { throw failure }
  }

  /// Waits while more than so many bytes are queued.
  public func waitForRoom(below bytes: Int) {
    var progress = Progress(self)
    while progress.continues(), queue.withLock({ !$0.isClosed && $0.bytes > bytes }) {
      HostWait.readable(room, timeout: 100)
      _ = lx_eventfd_take(room)
    }
  }

  /// Throws away what waits in bulk, and takes no more of it.
  public func dropBulk() {
    queue.withLock { queue in
      queue.takesBulk = false
      for message in queue.bulk { queue.bytes -= message.count }
      queue.bulk = []
    }
    lx_eventfd_signal(room)
  }

  /// Takes no more messages. For threads that may not make every system call; somebody else calls ``close()``.
  public func abandon() {
    queue.withLock { $0.isClosed = true }
    lx_eventfd_signal(wake)
  }

  /// Ends both threads' calls.
  public func close() {
    queue.withLock { $0.isClosed = true }
    _ = shutdown(descriptor, CInt(SHUT_RDWR))
    lx_eventfd_signal(wake)
    lx_eventfd_signal(room)
  }

  /// Ends the receiving thread's call, and lets what is queued be sent still.
  public func endReceiving() { _ = shutdown(descriptor, CInt(SHUT_RD)) }

  /// Waits until what is queued has been sent, `milliseconds` at the most, and says that no more comes. The other side can
  /// still be read.
  public func endSending(within milliseconds: Int) {
    for _ in 0..<milliseconds where !isDrained { usleep(1000) }
    _ = shutdown(descriptor, CInt(SHUT_WR))
  }

  /// Spoils what is sent next, as a faulty network or a dying host would.
  public func damageNext(_ damage: Damage) { self.damage.store(damage.rawValue, ordering: .relaxed) }

  /// Whether everything queued has gone to the kernel.
  public var isDrained: Bool {
    wire.withLock { wire in
      (wire.sent == wire.record.count || wire.failure != nil) && queue.withLock { $0.urgent.isEmpty && $0.bulk.isEmpty }
    }
  }

  /// How many urgent messages have been put so far, and how many of them are with the kernel, so that they are on their way even
  /// if this process ends now.
  public var urgentPut: UInt64 { queue.withLock { $0.urgentCount } }
  public var urgentHandedOver: UInt64 { urgentSent.load(ordering: .acquiring) }

  /// When the peer's last word was read, in monotonic nanoseconds.
  public var lastHeard: UInt64 { heard.load(ordering: .relaxed) }

  /// Bytes that have gone to the kernel.
  public var bytesSent: UInt64 { sent.load(ordering: .relaxed) }

  // MARK: The two threads

  /// Sends what is queued until the channel ends. The body of the sending thread.
  public func runSender() -> ChannelError {
    while true {
      let (isDone, failure) = wire.withLock { wire in (transmit(&wire, bulk: true), wire.failure) }
      if let failure {
        close()
        return failure
      }
      if queue.withLock({ $0.isClosed }) { return .closed }
      if isDone {
        HostWait.readable(wake)
        _ = lx_eventfd_take(wake)
      } else {
        HostWait.writable(descriptor, timeout: 100)
      }
    }
  }

  /// Sends what is left of a record, and so many more, until nothing waits (true), or the socket has no room or more waits (false).
  private func transmit(_ wire: inout Wire, bulk: Bool, atMost records: Int = .max) -> Bool {
    var left = records
    while true {
      while wire.sent < wire.record.count {
        let result = unsafe wire.record.withUnsafeBytes { buffer in
          unsafe lx_send(descriptor, buffer.baseAddress! + wire.sent, buffer.count - wire.sent)
        }
        if result == -Int(EINTR) { continue }
        if result == -Int(EAGAIN) { return false }
        guard result > 0 else {
          wire.failure =
            result == -Int(EPIPE) || result == -Int(ECONNRESET)
            ? .closed : .system(operation: "send", errno: CInt(-result))
          // The sending thread tells.
          lx_eventfd_signal(wake)
          return true
        }
        wire.sent += result
        sent.wrappingAdd(UInt64(result), ordering: .relaxed)
      }
      guard wire.failure == nil else { return true }
      urgentSent.store(wire.urgent, ordering: .releasing)
      if left == 0 { return queue.withLock { $0.urgent.isEmpty } }
      left -= 1
      let next = queue.withLock { queue in queue.isClosed ? nil : queue.take(bulk: bulk) }
      guard let (record, urgent) = next else { return true }
      lx_eventfd_signal(room)
      wire.record = record
      wire.urgent = urgent ?? wire.urgent
      wire.record.replaceSubrange(0..<4, with: Self.bytes(UInt32(record.count - 4)))
      let number = wire.number
      wire.record += unsafe wire.record.withUnsafeBytes { unsafe wire.code.code(number: number, $0) }
      wire.number += 1
      wire.sent = 0
      switch Damage(rawValue: damage.exchange(0, ordering: .relaxed)) {
      case nil: break
      case .flippedBit: wire.record[wire.record.count / 2] ^= 1
      case .cutShort:
        wire.record.removeLast(wire.record.count / 2)
        wire.failure = .closed
        lx_eventfd_signal(wake)
      }
    }
  }

  /// The next message. For the receiving thread.
  /// - Parameter milliseconds: how long it may take; nil for any time.
  /// - Throws: ``ChannelError``, or ``StateError`` for a message that is none.
  public func receive(within milliseconds: UInt64? = nil) throws -> Message {
    let deadline = milliseconds.map { lx_monotonic_ns() + $0 * 1_000_000 }
    let result: Result<Message, any Error> = reader.withLock { reader in
      Result {
        while reader.messages.isEmpty { try nextRecord(&reader, deadline) }
        let count = Self.number(reader.bytes, at: reader.messages.lowerBound)
        let body = reader.messages.lowerBound + 4..<reader.messages.lowerBound + 4 + count
        reader.messages = body.upperBound..<reader.messages.upperBound
        return try Message(decoding: reader.bytes[body])
      }
    }
    return try result.get()
  }

  /// Whether a message can be received without waiting, as far as is known.
  public var hasReceived: Bool { reader.withLock { !$0.messages.isEmpty } }

  /// Whether bytes, or the end, wait to be received.
  public var isUnread: Bool { HostWait.readable(descriptor, timeout: 0) }

  /// Waits for a record, verifies it and finds its messages' limits.
  private func nextRecord(_ reader: inout Reader, _ deadline: UInt64?) throws(ChannelError) {
    try fill(&reader, 4, deadline)
    let count = Self.number(reader.bytes, at: reader.start)
    guard count <= Self.recordLimit else { throw .messageTooLong(UInt64(count)) }
    try fill(&reader, 4 + count + Self.macSize, deadline)
    let body = reader.start + 4..<reader.start + 4 + count
    let number = reader.number
    let start = reader.start
    let expected = unsafe reader.bytes.withUnsafeBytes {
      unsafe reader.code.code(number: number, UnsafeRawBufferPointer(rebasing: $0[start..<body.upperBound]))
    }
    guard SharedKey.equal(expected[...], reader.bytes[body.upperBound..<body.upperBound + Self.macSize]) else {
      throw .notAuthentic
    }
    var at = body.lowerBound
    while at < body.upperBound {
      guard body.upperBound - at >= 4 else { throw .notAuthentic }
      let size = Self.number(reader.bytes, at: at)
      guard size <= min(Message.limit, body.upperBound - at - 4) else { throw .messageTooLong(UInt64(size)) }
      at += 4 + size
    }
    reader.number += 1
    reader.messages = body
    reader.start = body.upperBound + Self.macSize
  }

  /// Receives until so many bytes lie behind ``Reader/start``.
  private func fill(_ reader: inout Reader, _ count: Int, _ deadline: UInt64?) throws(ChannelError) {
    if reader.start == reader.end { (reader.start, reader.end) = (0, 0) }
    if reader.start + max(count, Self.readSize) > reader.bytes.count {
      reader.bytes.replaceSubrange(0..<reader.start, with: [])
      reader.end -= reader.start
      reader.start = 0
      let size = max(count, 2 * Self.readSize)
      if reader.bytes.count < size {
        reader.bytes += [UInt8](repeating: 0, count: size - reader.bytes.count)
      }
    }
    while reader.end - reader.start < count {
      let (start, end) = (reader.end, reader.bytes.count)
      let result = unsafe reader.bytes.withUnsafeMutableBytes { buffer in
        unsafe lx_recv(descriptor, buffer.baseAddress! + start, end - start)
      }
      if result == -Int(EINTR) { continue }
      if result == -Int(EAGAIN) {
        try wait(until: deadline)
        continue
      }
      guard result > 0 else {
        throw result == 0 || result == -Int(ECONNRESET) ? .closed : .system(operation: "recv", errno: CInt(-result))
      }
      reader.end += result
      heard.store(lx_monotonic_ns(), ordering: .relaxed)
    }
  }

  private func wait(until deadline: UInt64?) throws(ChannelError) {
    guard let deadline else { return _ = HostWait.readable(descriptor) }
    let now = lx_monotonic_ns()
    guard now < deadline else { throw .timedOut }
    HostWait.readable(descriptor, timeout: CInt((deadline - now) / 1_000_000) + 1)
  }

  // MARK: Pieces

  private static let readSize = 256 << 10

  private static func number(_ bytes: [UInt8], at offset: Int) -> Int {
    (0..<4).reduce(0) { $0 | Int(bytes[offset + $1]) << (8 * $1) }
  }

  static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }
}
