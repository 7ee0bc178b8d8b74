internal import CLinux
internal import Glibc
internal import Synchronization

/// Why a channel ended.
public enum ChannelError: Error, Equatable, Sendable {
  /// The other side closed it, or the network did.
  case closed
  case system(operation: String, errno: Int32)
  /// Nothing came within the time a step may take.
  case timedOut
  /// The other side does not have our key, or is no peer of ours.
  case notAuthentic
  case otherVersion(UInt32)
  case messageTooLong(UInt64)
  /// The other side does not read: more waits than may.
  case sendQueueFull
  /// The secondary does not follow this primary: why.
  case refused(String)
}

extension ChannelError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .closed: "the other side closed the connection"
    case .system(let operation, let error):
      "\(operation) on the replication channel: \(unsafe String(cString: lx_strerror(error)))"
    case .timedOut: "the other side does not answer; is it a minivmm that waits for a peer?"
    case .notAuthentic: "the other side does not have the same key; give both the same --key file"
    case .otherVersion(let version):
      "the other side speaks version \(version) of the protocol, this one \(Channel.version); run the same build on both"
    case .messageTooLong(let count): "the other side announced a message of \(count) bytes"
    case .sendQueueFull: "the other side does not read what it is sent"
    case .refused(let why): "the other side refuses: \(why)"
    }
  }
}

/// A connected stream socket on which two sides that share a key exchange authenticated messages.
///
///     greeting: magic "MVMMPAIR"  version:4  nonce:32                        both, at once
///     proof:    HMAC-SHA-256(key, "proof" · role · own nonce · other nonce)  both
///     then:     { length:4  message  HMAC-SHA-256(direction's key, sequence:8 · length:4 · message):32 }…
///
/// The keys of the directions come from the shared one and both nonces (HKDF), so nothing of another session, direction or
/// position is taken. One thread sends, one receives; ``send(_:)`` is for any thread.
public final class Channel: Sendable {
  public enum Side: UInt8, Sendable { case primary = 1, secondary = 2 }

  public static let version: UInt32 = 2
  private static let magic = Array("MVMMPAIR".utf8)
  private static let nonceSize = 32
  private static let macSize = SharedKey.codeSize

  private struct Queue {
    /// Small and urgent first: heartbeats, input, acknowledgements do not wait behind a checkpoint's pages.
    var urgent: [[UInt8]] = []
    var bulk: [[UInt8]] = []
    var bytes = 0
    var isClosed = false
    var takesBulk = true
  }

  private let descriptor: CInt
  private let sendKey: SharedKey
  private let receiveKey: SharedKey
  private let queue = Mutex(Queue())
  /// An eventfd: something waits to be sent.
  private let wake: CInt
  /// An eventfd: bulk was sent.
  private let room: CInt
  private let sequence = Mutex<UInt64>(0)
  private let sent = Atomic<UInt64>(0)
  /// Bytes that may wait to be sent; a peer that does not read must not fill our memory.
  public let queueLimit: Int

  /// Shakes hands on a connected socket, which it then owns. Blocks for ``timeout`` at most.
  /// - Parameter timeout: milliseconds for the whole handshake.
  public init(
    descriptor: CInt, side: Side, key: SharedKey, timeout: UInt64 = 2000, queueLimit: Int = 256 << 20
  ) throws(ChannelError) {
    // What fails here has no deinit.
    do throws(ChannelError) {
      (sendKey, receiveKey) = try Self.shakeHands(descriptor, side, key, timeout: timeout)
    } catch {
      lx_close(descriptor)
      throw error
    }
    self.descriptor = descriptor
    self.queueLimit = queueLimit
    wake = lx_eventfd(0)
    room = lx_eventfd(0)
  }

  /// The keys of this session: what we send with, and what we receive with.
  private static func shakeHands(
    _ descriptor: CInt, _ side: Side, _ key: SharedKey, timeout: UInt64
  ) throws(ChannelError) -> (SharedKey, SharedKey) {
    let deadline = lx_monotonic_ns() + timeout * 1_000_000
    var mine = [UInt8](repeating: 0, count: nonceSize)
    _ = unsafe mine.withUnsafeMutableBytes { unsafe lx_getrandom($0.baseAddress, $0.count) }
    let greeting = magic + bytes(Self.version) + mine
    try write(descriptor, greeting)
    let theirs = try read(descriptor, greeting.count, deadline: deadline)
    guard Array(theirs[..<8]) == magic else { throw .notAuthentic }
    let version = (0..<4).reduce(UInt32(0)) { $0 | UInt32(theirs[8 + $1]) << (8 * UInt32($1)) }
    guard version == Self.version else { throw .otherVersion(version) }
    let other = Array(theirs[12...])
    // Both know which side they are, so a proof that is sent back does not fit.
    let peer: Side = side == .primary ? .secondary : .primary
    let label = Array("proof".utf8)
    try write(descriptor, key.code(label + [side.rawValue], mine + other))
    let got = try read(descriptor, macSize, deadline: deadline)
    guard SharedKey.equal(key.code(label + [peer.rawValue], other + mine)[...], got[...]) else { throw .notAuthentic }
    let salt = side == .primary ? mine + other : other + mine
    func derived(_ from: Side) -> SharedKey {
      key.derived(salt: salt, info: Array("direction".utf8) + [from.rawValue])
    }
    return (derived(side), derived(peer))
  }

  deinit {
    lx_close(descriptor)
    lx_close(wake)
    lx_close(room)
  }

  // MARK: Any thread

  /// Queues a message that must not wait; in order among its like.
  public func send(_ message: Message) throws(ChannelError) { try enqueue(message.encoded, urgent: true) }

  /// Queues a message behind everything urgent, and waits while much bulk is queued. In order among its like.
  public func sendBulk(_ message: Message) throws(ChannelError) {
    while queue.withLock({ !$0.isClosed && $0.takesBulk && $0.bulk.count >= 8 }) {
      var entry = pollfd(fd: room, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&entry, 1, 100)
      _ = lx_eventfd_take(room)
    }
    try enqueue(message.encoded, urgent: false)
  }

  private func enqueue(_ bytes: [UInt8], urgent: Bool) throws(ChannelError) {
    let failure: ChannelError? = queue.withLock { queue in
      if queue.isClosed || !urgent && !queue.takesBulk { return .closed }
      guard queue.bytes + bytes.count <= queueLimit else { return .sendQueueFull }
      queue.bytes += bytes.count
      if urgent { queue.urgent.append(bytes) } else { queue.bulk.append(bytes) }
      return nil
    }
    if let failure { throw failure }
    lx_eventfd_signal(wake)
  }

  /// Waits while more than so many bytes are queued.
  public func waitForRoom(below bytes: Int) {
    while queue.withLock({ !$0.isClosed && $0.bytes > bytes }) {
      var entry = pollfd(fd: room, events: Int16(POLLIN), revents: 0)
      _ = unsafe poll(&entry, 1, 100)
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

  /// Whether everything queued has gone to the kernel.
  public var isDrained: Bool { queue.withLock { $0.urgent.isEmpty && $0.bulk.isEmpty } }

  /// Bytes that have gone to the kernel.
  public var bytesSent: UInt64 { sent.load(ordering: .relaxed) }

  /// Sends one message, there and then: for a channel on which nothing else is sent.
  func sendOnly(_ message: Message) throws(ChannelError) {
    var out: [UInt8] = []
    seal(message.encoded, number: 0, into: &out)
    try Self.write(descriptor, out)
  }

  // MARK: The two threads

  /// Sends what is queued until the channel ends. The body of the sending thread.
  public func runSender() -> ChannelError {
    // Heartbeats come this way: a busy host must not make this side look dead.
    lx_thread_urgent(1)
    var number: UInt64 = 0
    var out: [UInt8] = []
    while true {
      var messages: [[UInt8]] = []
      let isClosed = queue.withLock { queue in
        swap(&messages, &queue.urgent)
        if messages.isEmpty, !queue.bulk.isEmpty { messages.append(queue.bulk.removeFirst()) }
        for message in messages { queue.bytes -= message.count }
        return queue.isClosed
      }
      if isClosed { return .closed }
      lx_eventfd_signal(room)
      guard !messages.isEmpty else {
        var entry = pollfd(fd: wake, events: Int16(POLLIN), revents: 0)
        _ = unsafe poll(&entry, 1, -1)
        _ = lx_eventfd_take(wake)
        continue
      }
      out.removeAll(keepingCapacity: true)
      for message in messages {
        seal(message, number: number, into: &out)
        number += 1
      }
      do throws(ChannelError) { try Self.write(descriptor, out) } catch {
        close()
        return error
      }
      sent.wrappingAdd(UInt64(out.count), ordering: .relaxed)
    }
  }

  private func seal(_ message: [UInt8], number: UInt64, into out: inout [UInt8]) {
    let length = Self.bytes(UInt32(message.count))
    out += length
    out += message
    out += sendKey.code(Self.bytes(number) + length, message)
  }

  /// The next message. For the receiving thread.
  /// - Parameter milliseconds: how long it may take; nil for any time.
  public func receive(within milliseconds: UInt64? = nil) throws(ChannelError) -> [UInt8] {
    let deadline = milliseconds.map { lx_monotonic_ns() + $0 * 1_000_000 }
    let length = try Self.read(descriptor, 4, deadline: deadline)
    let count = (0..<4).reduce(UInt64(0)) { $0 | UInt64(length[$1]) << (8 * UInt64($1)) }
    guard count <= UInt64(Message.limit) else { throw .messageTooLong(count) }
    let body = try Self.read(descriptor, Int(count) + Self.macSize, deadline: deadline)
    let message = Array(body[..<Int(count)])
    let number = sequence.withLock { value in
      defer { value += 1 }
      return value
    }
    let expected = receiveKey.code(Self.bytes(number) + length, message)
    guard SharedKey.equal(expected[...], body[Int(count)...]) else { throw .notAuthentic }
    return message
  }

  // MARK: Pieces

  private static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) }
  }

  private static func write(_ descriptor: CInt, _ bytes: [UInt8]) throws(ChannelError) {
    var done = 0
    while done < bytes.count {
      let result = unsafe bytes.withUnsafeBytes { buffer in
        let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer[done...])
        return unsafe lx_send(descriptor, rest.baseAddress, rest.count)
      }
      if result == -Int(EINTR) { continue }
      if result == -Int(EAGAIN) {
        var entry = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
        _ = unsafe poll(&entry, 1, 1000)
        continue
      }
      guard result > 0 else {
        throw result == -Int(EPIPE) || result == -Int(ECONNRESET)
          ? .closed : .system(operation: "send", errno: CInt(-result))
      }
      done += result
    }
  }

  private static func read(_ descriptor: CInt, _ count: Int, deadline: UInt64?) throws(ChannelError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      var patience: CInt = -1
      if let deadline {
        let now = lx_monotonic_ns()
        guard now < deadline else { throw .timedOut }
        patience = CInt((deadline - now) / 1_000_000) + 1
      }
      var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
      guard unsafe poll(&entry, 1, patience) != 0 else { throw .timedOut }
      let result = unsafe bytes.withUnsafeMutableBytes { buffer in
        let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
        return unsafe lx_recv(descriptor, rest.baseAddress, rest.count)
      }
      if result == -Int(EINTR) || result == -Int(EAGAIN) { continue }
      guard result > 0 else {
        throw result == 0 || result == -Int(ECONNRESET) ? .closed : .system(operation: "recv", errno: CInt(-result))
      }
      done += result
    }
    return bytes
  }
}
