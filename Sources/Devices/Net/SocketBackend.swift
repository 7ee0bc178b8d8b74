internal import CLinux
internal import Glibc
public import GuestMemory
internal import Synchronization
internal import VirtioLayout

/// A unix stream socket that carries frames, each behind its length as 4 bytes big-endian: what QEMU's
/// `-netdev stream`, passt and gvproxy speak. No offloads. A peer that breaks the framing is cut off; one that has gone is called
/// again, at the same path.
public final class SocketBackend: FrameBackend {
  /// Longest frame accepted from the peer, without its virtio header.
  static let maximumFrame = 65_550

  private let path: String
  private let state: Mutex<State>

  private struct State {
    /// -1 between a connection and the next.
    var descriptor: CInt
    /// Received and not yet handed on: at most one length and one frame beyond what is complete.
    var input: [UInt8]
    var start = 0
    var end = 0
    /// Rest of a frame the peer has not taken.
    var output: [UInt8] = []
    var gone = false
  }

  public init(path: String) throws(NetBackendError) {
    self.path = path
    let input = [UInt8](repeating: 0, count: 2 * (Self.maximumFrame + 4))
    state = Mutex(State(descriptor: try Self.connect(path), input: input))
  }

  deinit {
    let descriptor = descriptor
    if descriptor >= 0 { lx_close(descriptor) }
  }

  private static func connect(_ path: String) throws(NetBackendError) -> CInt {
    let fd = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    guard fd >= 0 else { throw .socket(path: path, operation: "socket", errno: -fd) }
    let result = unsafe lx_unix_connect(fd, path)
    guard result >= 0 else {
      lx_close(fd)
      throw .socket(path: path, operation: "connect", errno: -result)
    }
    return fd
  }

  public var descriptor: CInt { state.withLock { $0.descriptor } }
  public var canReopen: Bool { true }

  public func reopen() -> Bool {
    state.withLock { state in
      // A peer that takes one at a time sees the end of the last first.
      if state.descriptor >= 0 { lx_close(state.descriptor) }
      state.descriptor = (try? Self.connect(path)) ?? -1
      (state.start, state.end, state.output) = (0, 0, [])
      state.gone = state.descriptor < 0
      return !state.gone
    }
  }

  public var offloads: UInt64 { 0 }
  public func setGuestOffloads(_ features: UInt64) {}

  public func send(
    _ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory
  ) -> SendResult {
    state.withLock { state in
      if state.gone { return .dropped }
      guard flush(&state) else { return .full }
      var length = UInt32(count).bigEndian
      let total = Int(count) + 4
      let sent = unsafe withUnsafeMutableBytes(of: &length) { length in
        let prefix = unsafe iovec(iov_base: length.baseAddress, iov_len: 4)
        return unsafe memory.withVectors(frame, offset: offset, count: count, prefix: prefix) { vectors in
          unsafe lx_sendv(state.descriptor, vectors.baseAddress, CInt(vectors.count))
        }
      }
      if sent == total { return .sent }
      if sent == -Int(EAGAIN) { return .full }
      guard sent >= 0 else {
        state.gone = true
        return .dropped
      }
      // The peer took a part: the rest must follow before anything else.
      var rest = [UInt8](repeating: 0, count: total)
      unsafe withUnsafeBytes(of: length) { unsafe rest.replaceSubrange(0..<4, with: $0) }
      unsafe rest.withUnsafeMutableBytes { bytes in
        _ = unsafe memory.gather(
          frame, offset: offset, into: UnsafeMutableRawBufferPointer(rebasing: bytes[4...]))
      }
      state.output = Array(rest[sent...])
      return .sent
    }
  }

  public func flush() -> Bool { state.withLock { flush(&$0) } }

  private func flush(_ state: inout State) -> Bool {
    guard !state.output.isEmpty else { return true }
    let sent = unsafe state.output.withUnsafeBytes { unsafe lx_send(state.descriptor, $0.baseAddress, $0.count) }
    if sent > 0 {
      state.output.removeFirst(sent)
    } else if sent != -Int(EAGAIN), sent != -Int(EINTR) {
      state.gone = true
      state.output = []
    }
    return state.output.isEmpty
  }

  public func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    state.withLock { state in
      if state.gone { return -Int(ENOTCONN) }
      while true {
        if let length = unsafe takeFrame(&state, into: buffer) { return length }
        if state.gone { return -Int(EPROTO) }
        if state.start > 0 {
          unsafe state.input.withUnsafeMutableBytes { bytes in
            unsafe bytes.copyMemory(from: UnsafeRawBufferPointer(rebasing: bytes[state.start..<state.end]))
          }
          state.end -= state.start
          state.start = 0
        }
        let (descriptor, end) = (state.descriptor, state.end)
        let got = unsafe state.input.withUnsafeMutableBytes { bytes in
          let free = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[end...])
          return unsafe lx_recv(descriptor, free.baseAddress, free.count)
        }
        if got == -Int(EAGAIN) || got == -Int(EINTR) { return 0 }
        guard got > 0 else {
          state.gone = true
          return got == 0 ? -Int(ENOTCONN) : got
        }
        state.end += got
      }
    }
  }

  /// The next whole frame behind an all-zero virtio header, or nil when more bytes are needed.
  private func takeFrame(_ state: inout State, into buffer: UnsafeMutableRawBufferPointer) -> Int? {
    guard state.end - state.start >= 4 else { return nil }
    let length = (0..<4).reduce(0) { $0 << 8 | Int(state.input[state.start + $1]) }
    guard length > 0, length <= Self.maximumFrame, length + NetHeader.size <= buffer.count else {
      state.gone = true
      return nil
    }
    guard state.end - state.start - 4 >= length else { return nil }
    let from = state.start + 4
    unsafe state.input.withUnsafeBytes { bytes in
      unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[..<NetHeader.size]).initializeMemory(
        as: UInt8.self, repeating: 0)
      unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[NetHeader.size...]).copyMemory(
        from: UnsafeRawBufferPointer(rebasing: bytes[from..<from + length]))
    }
    state.start += 4 + length
    return NetHeader.size + length
  }
}
