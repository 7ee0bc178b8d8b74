import CLinux
import Devices
import Glibc

/// The other end of a control socket: one request, one reply.
enum ControlClient {
  /// How often, and microseconds after how long, a full backlog is tried again.
  private static let attempts = 50
  private static let pause: UInt32 = 100_000

  /// - Parameter descriptor: an open file that travels with the request, or -1.
  static func send(_ request: ControlRequest, to path: String, descriptor: CInt = -1) throws -> ControlReply {
    let fd = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    guard fd >= 0 else { throw HostError(operation: "socket", errno: -fd) }
    defer { lx_close(fd) }
    var connected = unsafe lx_unix_connect(fd, path)
    // As many wait as may.
    for _ in 0..<Self.attempts where connected == -EAGAIN {
      usleep(Self.pause)
      connected = unsafe lx_unix_connect(fd, path)
    }
    guard connected != -EAGAIN else {
      throw Failure("the machine at \(path) does not answer those who ask it already; is it hung?", .protocolError)
    }
    guard connected >= 0 else {
      throw Failure(
        "cannot reach control socket \(path): \(unsafe String(cString: lx_strerror(-connected))); "
          + "is the machine running with --control \(path)?", .protocolError)
    }
    let line = ControlCodec.line(request)
    let sent = unsafe line.withUnsafeBytes { bytes in
      descriptor < 0
        ? unsafe lx_send(fd, bytes.baseAddress, bytes.count)
        : unsafe lx_send_fd(fd, bytes.baseAddress, bytes.count, descriptor)
    }
    // One that has been refused finds the connection closed, and the reason in it.
    guard sent == line.count || sent == -Int(EPIPE) else {
      throw Failure("the machine at \(path) does not take requests; is it hung?", .protocolError)
    }
    var reply: [UInt8] = []
    while reply.last != UInt8(ascii: "\n"), reply.count <= ControlCodec.lineLimit {
      HostThread.waitReadable(fd)
      let got = unsafe withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
        let got = unsafe lx_recv(fd, buffer.baseAddress, buffer.count)
        if got > 0 { unsafe reply.append(contentsOf: buffer[..<got]) }
        return got
      }
      if got == -Int(EAGAIN) || got == -Int(EINTR) { continue }
      guard got > 0 else { break }
    }
    guard let value = ControlCodec.value(ControlReply.self, reply[...]) else {
      throw Failure("the machine at \(path) ended before it answered", .protocolError)
    }
    return value
  }
}
