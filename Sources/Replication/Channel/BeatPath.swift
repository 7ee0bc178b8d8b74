internal import CLinux
internal import Glibc
internal import StateCodec
internal import Synchronization

/// The second way on which two sides tell each other that they live: UDP datagrams, which wait behind nothing and may go by
/// another network than the channel.
///
///     magic "MVMB"  term:8  sequence:8  flags:1  HMAC-SHA-256(direction's beat key, the 21 bytes before)
///
/// The keys belong to one channel (HKDF with its nonces), and sequence numbers ascend, so that nothing older counts. From any
/// thread.
public final class BeatPath: Sendable {
  public struct Beat: Equatable, Sendable {
    public var term: UInt64
    /// The sender serves on without the receiver, which must not take over.
    public var hasLeft: Bool
    public init(term: UInt64, hasLeft: Bool) {
      self.term = term
      self.hasLeft = hasLeft
    }
  }

  public enum Arrival: Equatable, Sendable {
    case none
    case beat(Beat)
    /// The other host says that nobody is there any more.
    case gone
  }

  private static let magic = Array("MVMB".utf8)
  private static let size = 21
  private static let mostAtOnce = 1024

  private struct State {
    var keys: Channel.Keys?
    var sent: UInt64 = 0
    var received: UInt64 = 0
    /// Where a listening one sends to, once it has heard something authentic.
    var peer: lx_udp_peer?
  }

  /// Its socket.
  public let descriptor: CInt
  private let listens: Bool
  private let state: Mutex<State>

  /// - Parameters:
  ///   - address: "host:port"; where to listen (secondary), or where the other listens (primary).
  public init(_ address: String, listens: Bool) throws(ChannelError) {
    descriptor = listens ? unsafe lx_udp_listen(address) : unsafe lx_udp_connect(address)
    self.listens = listens
    state = Mutex(State())
    guard descriptor != -EADDRNOTAVAIL || listens else { throw .unresolved(address) }
    guard descriptor >= 0 else { throw .system(operation: "opening UDP \(address)", errno: -descriptor) }
  }

  /// To where a TCP socket is connected: the same address and port.
  public init(beside channel: CInt) throws(ChannelError) {
    descriptor = lx_udp_connect_beside(channel)
    listens = false
    state = Mutex(State())
    guard descriptor >= 0 else { throw .system(operation: "opening UDP beside TCP", errno: -descriptor) }
  }

  deinit { if descriptor >= 0 { lx_close(descriptor) } }

  /// Beats belong to this channel from now on.
  public func begin(_ channel: Channel) {
    state.withLock { state in
      state.keys = channel.keys
      (state.sent, state.received) = (0, 0)
      guard listens else { return }
      _ = lx_udp_only_from(descriptor, nil)
      state.peer = nil
    }
  }

  /// - Returns: false when the other host says that nobody is there.
  @discardableResult
  public func send(_ beat: Beat) -> Bool {
    state.withLock { state in
      guard let keys = state.keys, !listens || state.peer != nil else { return true }
      state.sent += 1
      var out = StateWriter()
      out.put(beat.term)
      out.put(state.sent)
      out.put(beat.hasLeft)
      let body = Self.magic + out.bytes
      let datagram = body + keys.sendBeat.code(body, [])
      let result = unsafe datagram.withUnsafeBytes { bytes in
        guard var peer = state.peer else { return unsafe lx_send(descriptor, bytes.baseAddress, bytes.count) }
        return unsafe lx_udp_send(descriptor, bytes.baseAddress, bytes.count, &peer)
      }
      return result != -Int(ECONNREFUSED)
    }
  }

  /// Receives every heartbeat that waits, up to a limit, and answers them all by one.
  public func answer(_ beat: Beat) {
    var isHeard = false
    for _ in 0..<Self.mostAtOnce {
      switch receive() {
      case .beat: isHeard = true
      case .gone: continue
      case .none:
        if isHeard { send(beat) }
        return
      }
    }
  }

  /// The next datagram that waits and is authentic.
  public func receive() -> Arrival {
    state.withLock { state in
      var bytes = [UInt8](repeating: 0, count: 128)
      // Whoever can reach the port can send faster than this reads.
      for _ in 0..<Self.mostAtOnce {
        var from = lx_udp_peer()
        let got = unsafe bytes.withUnsafeMutableBytes { bytes in
          // A connected socket hears of its peer alone.
          guard listens, var peer = state.peer else {
            return unsafe lx_udp_receive(descriptor, bytes.baseAddress, bytes.count, &from, nil)
          }
          return unsafe lx_udp_receive(descriptor, bytes.baseAddress, bytes.count, &from, &peer)
        }
        if got == -Int(ECONNREFUSED) { return .gone }
        if got == -Int(EAGAIN) { return .none }
        guard let keys = state.keys, got == Self.size + SharedKey.codeSize, Array(bytes[..<4]) == Self.magic,
          SharedKey.equal(keys.receiveBeat.code(Array(bytes[..<Self.size]), [])[...], bytes[Self.size..<got])
        else { continue }
        var reader = StateReader(Array(bytes[4..<Self.size]))
        guard let term = try? reader.get(UInt64.self), let sequence = try? reader.get(UInt64.self),
          let hasLeft = try? reader.get(Bool.self), sequence > state.received
        else { continue }
        state.received = sequence
        if listens, state.peer == nil {
          _ = unsafe lx_udp_only_from(descriptor, &from)
          state.peer = from
        }
        return .beat(Beat(term: term, hasLeft: hasLeft))
      }
      return .none
    }
  }
}
