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

/// How both sides of a new connection prove that they know the key.
enum Handshake {
  private static let magic = Array("MVMMPAIR".utf8)
  private static let nonceSize = 32

  /// The keys of this session.
  static func keys(
    _ descriptor: CInt, _ side: Channel.Side, _ key: SharedKey, timeout: UInt64
  ) throws(ChannelError) -> Channel.Keys {
    let deadline = lx_monotonic_ns() + timeout * 1_000_000
    var mine = [UInt8](repeating: 0, count: nonceSize)
    _ = unsafe mine.withUnsafeMutableBytes { unsafe lx_getrandom($0.baseAddress, $0.count) }
    let greeting = magic + Channel.bytes(Channel.version) + mine
    try write(descriptor, greeting)
    let theirs = try read(descriptor, greeting.count, deadline: deadline)
    guard Array(theirs[..<8]) == magic else { throw .notAuthentic }
    let version = (0..<4).reduce(UInt32(0)) { $0 | UInt32(theirs[8 + $1]) << (8 * UInt32($1)) }
    guard version == Channel.version else { throw .otherVersion(version) }
    let other = Array(theirs[12...])
    // Both know which side they are, so a proof that is sent back does not fit.
    let peer: Channel.Side = side == .primary ? .secondary : .primary
    let label = Array("proof".utf8)
    try write(descriptor, key.code(label + [side.rawValue], mine + other))
    let got = try read(descriptor, SharedKey.codeSize, deadline: deadline)
    guard SharedKey.equal(key.code(label + [peer.rawValue], other + mine)[...], got[...]) else { throw .notAuthentic }
    let salt = side == .primary ? mine + other : other + mine
    func derived(_ from: Channel.Side) -> SharedKey {
      key.derived(salt: salt, info: Array("direction".utf8) + [from.rawValue])
    }
    func beat(_ from: Channel.Side) -> SharedKey {
      key.derived(salt: salt, info: Array("beat".utf8) + [from.rawValue])
    }
    return Channel.Keys(
      send: derived(side), receive: derived(peer), sendBeat: beat(side), receiveBeat: beat(peer),
      early: key.derived(salt: salt, info: Array("early".utf8)),
      output: key.derived(salt: salt, info: Array("output".utf8)))
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
        HostWait.writable(descriptor, timeout: 1000)
        continue
      }
      guard result > 0 else {
        throw result == -Int(EPIPE) || result == -Int(ECONNRESET)
          ? .closed : .system(operation: "send", errno: CInt(-result))
      }
      done += result
    }
  }

  private static func read(_ descriptor: CInt, _ count: Int, deadline: UInt64) throws(ChannelError) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let now = lx_monotonic_ns()
      guard now < deadline, HostWait.readable(descriptor, timeout: CInt((deadline - now) / 1_000_000) + 1) else {
        throw .timedOut
      }
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
