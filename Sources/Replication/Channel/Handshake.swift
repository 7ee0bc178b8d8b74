internal import CLinux
internal import Glibc

extension Channel {
  /// The keys of one session and direction, of the channel and of the beats that go with it.
  struct Keys {
    let send: SharedKey
    let receive: SharedKey
    let sendBeat: SharedKey
    let receiveBeat: SharedKey
    /// Of what the primary lets out early.
    let early: SharedKey
    /// Of what the secondary's guest has sent.
    let output: SharedKey
  }
}

/// How both sides of a new connection prove that they know the key. It never waits: the socket's owner does. One thread.
final class Handshake {
  private static let magic = Array("MVMMPAIR".utf8)
  private static let nonceSize = 32
  private static let greetingSize = 12 + nonceSize
  private static let label = Array("proof".utf8)

  private let descriptor: CInt
  private let side: Channel.Side
  private let key: SharedKey
  private let nonce: [UInt8]
  /// What has come so far: not a byte more is read than belongs to the handshake.
  private var received: [UInt8] = []

  /// Sends the greeting on a connected socket, which stays the caller's.
  init(_ descriptor: CInt, _ side: Channel.Side, _ key: SharedKey) throws(ChannelError) {
    var nonce = [UInt8](repeating: 0, count: Self.nonceSize)
    let error = unsafe nonce.withUnsafeMutableBytes { unsafe lx_getrandom($0.baseAddress, $0.count) }
    guard error == 0 else { throw .system(operation: "getrandom", errno: -error) }
    (self.descriptor, self.side, self.key, self.nonce) = (descriptor, side, key, nonce)
    try write(Self.magic + Channel.bytes(Channel.version) + nonce)
  }

  /// Takes in what has come.
  /// - Returns: the keys of this session once the other side has proved that it knows the key; nil until then.
  func proceed() throws(ChannelError) -> Channel.Keys? {
    if received.count < Self.greetingSize {
      guard try read(upTo: Self.greetingSize) else { return nil }
      guard Array(received[..<8]) == Self.magic else { throw .notAuthentic }
      let version = (0..<4).reduce(UInt32(0)) { $0 | UInt32(received[8 + $1]) << (8 * UInt32($1)) }
      guard version == Channel.version else { throw .otherVersion(version) }
      // Both know which side they are, so a proof that is sent back does not fit.
      try write(key.code(Self.label + [side.rawValue], nonce + received[12...]))
    }
    guard try read(upTo: Self.greetingSize + SharedKey.codeSize) else { return nil }
    let other = Array(received[12..<Self.greetingSize])
    let peer: Channel.Side = side == .primary ? .secondary : .primary
    let proof = key.code(Self.label + [peer.rawValue], other + nonce)
    guard SharedKey.equal(proof[...], received[Self.greetingSize...]) else { throw .notAuthentic }
    let salt = side == .primary ? nonce + other : other + nonce
    func derived(_ purpose: String, _ from: Channel.Side) -> SharedKey {
      key.derived(salt: salt, info: Array(purpose.utf8) + [from.rawValue])
    }
    return Channel.Keys(
      send: derived("direction", side), receive: derived("direction", peer),
      sendBeat: derived("beat", side), receiveBeat: derived("beat", peer),
      early: key.derived(salt: salt, info: Array("early".utf8)),
      output: key.derived(salt: salt, info: Array("output".utf8)))
  }

  /// A new socket has room for what a handshake sends.
  private func write(_ bytes: [UInt8]) throws(ChannelError) {
    let result = unsafe bytes.withUnsafeBytes { unsafe lx_send(descriptor, $0.baseAddress, $0.count) }
    guard result == bytes.count else {
      throw result >= 0 || result == -Int(EPIPE) || result == -Int(ECONNRESET)
        ? .closed : .system(operation: "send", errno: CInt(-result))
    }
  }

  /// Whether so many bytes have come by now.
  private func read(upTo count: Int) throws(ChannelError) -> Bool {
    var bytes = [UInt8](repeating: 0, count: count)
    while received.count < count {
      let result = unsafe bytes.withUnsafeMutableBytes {
        unsafe lx_recv(descriptor, $0.baseAddress, count - received.count)
      }
      if result == -Int(EINTR) { continue }
      if result == -Int(EAGAIN) { return false }
      guard result > 0 else {
        throw result == 0 || result == -Int(ECONNRESET) ? .closed : .system(operation: "recv", errno: CInt(-result))
      }
      received += bytes[..<result]
    }
    return true
  }
}
