import CLinux
import Glibc
import Replication
import Synchronization
import Testing

/// Somebody between two honest sides who sees all and changes what he likes. Whatever he does: an error, and no message that
/// was not sent, nor one twice or out of turn.
@Suite("A channel with somebody in between", .timeLimit(.minutes(2))) struct HostileChannelTests {
  /// What goes from one side to the other, to be looked at and changed.
  private static func sockets() -> (CInt, CInt) {
    var ends: [CInt] = [0, 0]
    #expect(unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
    return (ends[0], ends[1])
  }

  private final class Box<T: Sendable>: Sendable {
    let value: Mutex<T?> = Mutex(nil)
  }

  /// The two sides with a wire each that ends here.
  private struct Middle {
    let primary: Channel?
    let secondary: Channel?
    let toPrimary: CInt
    let toSecondary: CInt
  }

  private static func take(_ descriptor: CInt, _ count: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var got = 0
    for _ in 0..<2000 where got < count {
      let result = unsafe bytes.withUnsafeMutableBytes {
        unsafe lx_recv(descriptor, $0.baseAddress! + got, count - got)
      }
      if result == 0 { break }
      if result > 0 { got += result } else { usleep(500) }
    }
    return Array(bytes[..<got])
  }

  private static func put(_ bytes: [UInt8], _ descriptor: CInt) { _ = unsafe lx_send(descriptor, bytes, bytes.count) }

  /// Shakes hands through the middle, which changes what the primary says.
  private static func connect(timeout: UInt64 = 2000, _ change: ([UInt8], Int) -> [UInt8] = { bytes, _ in bytes })
    -> Middle
  {
    let (a, toPrimary) = sockets()
    let (b, toSecondary) = sockets()
    let (first, second) = (Box<Channel>(), Box<Channel>())
    let threads = [
      Body {
        let channel = try? Channel(descriptor: a, side: .primary, key: ChannelTests.key, timeout: timeout)
        first.value.withLock { $0 = channel }
      }.start(),
      Body {
        let channel = try? Channel(descriptor: b, side: .secondary, key: ChannelTests.key, timeout: timeout)
        second.value.withLock { $0 = channel }
      }.start(),
    ]
    var at = 0
    for size in [44, 32] {
      put(change(take(toPrimary, size), at), toSecondary)
      put(take(toSecondary, size), toPrimary)
      at += size
      // The other has hung up.
      if at == 44, second.value.withLock({ $0 }) == nil { usleep(200) }
    }
    _ = shutdown(toPrimary, CInt(SHUT_WR))
    for thread in threads { lx_thread_join(thread) }
    return Middle(
      primary: first.value.withLock { $0 }, secondary: second.value.withLock { $0 }, toPrimary: toPrimary,
      toSecondary: toSecondary)
  }

  private static func end(_ middle: Middle) {
    close(middle.toPrimary)
    close(middle.toSecondary)
  }

  @Test func unchanged_bothSidesMeet() {
    let middle = Self.connect()
    #expect(middle.primary != nil && middle.secondary != nil)
    Self.end(middle)
  }

  /// Every byte of the greeting and the proof.
  @Test(arguments: 0..<76) func changedHandshake_isRefused(position: Int) {
    let middle = Self.connect(timeout: 150) { bytes, start in
      var bytes = bytes
      if bytes.indices.contains(position - start) { bytes[position - start] ^= 1 << UInt8(position % 8) }
      return bytes
    }
    #expect(middle.secondary == nil)
    Self.end(middle)
  }

  /// A primary's records as they are on the wire, one for each message, and a secondary that has had none of them.
  private static func recorded(_ messages: [Message]) throws -> (Middle, [[UInt8]]) {
    let middle = connect()
    let primary = try #require(middle.primary)
    var records: [[UInt8]] = []
    for message in messages {
      try primary.send(message)
      let head = take(middle.toPrimary, 4)
      let size = head.enumerated().reduce(0) { $0 | Int($1.element) << (8 * $1.offset) }
      records.append(head + take(middle.toPrimary, size + 16))
    }
    return (middle, records)
  }

  /// What the secondary makes of these bytes and the end of the connection: messages, and why there are no more.
  private static func deliver(_ bytes: [UInt8], _ middle: Middle) throws -> ([Message], any Error) {
    put(bytes, middle.toSecondary)
    _ = shutdown(middle.toSecondary, CInt(SHUT_WR))
    let secondary = try #require(middle.secondary)
    var got: [Message] = []
    while true {
      do { got.append(try secondary.receive(within: 2000)) } catch { return (got, error) }
    }
  }

  private static let messages: [Message] = [
    .input(card: 0, number: 1, frame: [1, 2, 3]), .heartbeat(term: 1, time: 7),
    .input(card: 0, number: 2, frame: []),
  ]

  /// Every byte of a record: its length, a message's length, the message, the code.
  @Test func changedRecord_deliversNothingOfItNorAfterIt() throws {
    let size = try Self.recorded(Self.messages).1[1].count
    #expect(size > 4 + 4 + 17 + 16 - 1)
    for position in 0..<size {
      let (middle, records) = try Self.recorded(Self.messages)
      var changed = records[1]
      changed[position] ^= 1 << UInt8(position % 8)
      let (got, error) = try Self.deliver(records[0] + changed + records[2], middle)
      #expect(got == [Self.messages[0]], "byte \(position)")
      #expect(error is ChannelError, "byte \(position): \(error)")
      Self.end(middle)
    }
  }

  @Test func recordCutShort_deliversNothingOfIt() throws {
    let size = try Self.recorded(Self.messages).1[1].count
    for length in 0..<size {
      let (middle, records) = try Self.recorded(Self.messages)
      let (got, error) = try Self.deliver(records[0] + records[1][..<length], middle)
      #expect(got == [Self.messages[0]] && error as? ChannelError == .closed, "\(length) bytes: \(error)")
      Self.end(middle)
    }
  }

  /// Replayed, reordered, left out, put into each other, and sent back to who made it.
  @Test(arguments: ["replayed", "reordered", "left out", "interleaved"]) func recordsOutOfTurn_areRefused(how: String)
    throws
  {
    let (middle, records) = try Self.recorded(Self.messages)
    let (bytes, good): ([UInt8], Int)
    switch how {
    case "replayed": (bytes, good) = (records[0] + records[0] + records[1], 1)
    case "reordered": (bytes, good) = (records[0] + records[2] + records[1], 1)
    case "left out": (bytes, good) = (records[1] + records[2], 0)
    default:
      let half = records[1].count / 2
      (bytes, good) = (records[0] + records[1][..<half] + records[2] + records[1][half...], 1)
    }
    let (got, error) = try Self.deliver(bytes, middle)
    #expect(got == Array(Self.messages[..<good]))
    #expect(error as? ChannelError == .notAuthentic)
    Self.end(middle)
  }

  @Test func ownRecordSentBack_andOneOfAnotherSession_areRefused() throws {
    let (middle, records) = try Self.recorded(Self.messages)
    let (other, foreign) = try Self.recorded(Self.messages)
    let (got, error) = try Self.deliver(foreign[0], middle)
    #expect(got == [] && error as? ChannelError == .notAuthentic)
    // To the primary, what it said itself.
    let third = Self.connect()
    let primary = try #require(third.primary)
    _ = records
    try primary.send(Self.messages[1])
    #expect(throws: ChannelError.self) { try primary.receive(within: 100) }
    for middle in [middle, other, third] { Self.end(middle) }
  }

  /// A length is looked at before anything is allocated for it.
  @Test func oversizedRecord_isRefusedAtOnce() throws {
    for length in [UInt32(33 << 20), .max] {
      let (middle, records) = try Self.recorded(Self.messages)
      let head = (0..<4).map { UInt8(truncatingIfNeeded: length >> (8 * UInt32($0))) }
      let (got, error) = try Self.deliver(records[0] + head + [0, 0], middle)
      #expect(got == [Self.messages[0]] && error as? ChannelError == .messageTooLong(UInt64(length)), "\(error)")
      Self.end(middle)
    }
  }
}
