import CLinux
import Devices
import Glibc
import Synchronization

/// The control socket of a running machine: accepts a few clients and answers their lines. Runs on the control thread.
final class ControlServer: EventHandler {
  static let clientLimit = 8

  private let path: String
  private let listener: CInt
  private let loop: EventLoop
  private let clients = Mutex<[Client?]>([Client?](repeating: nil, count: clientLimit))
  /// Answers a request; the descriptor that came with it, or -1, is closed afterwards.
  private let answer: @Sendable (ControlRequest, CInt) -> ControlReply

  private struct Client {
    var descriptor: CInt
    var source: EventLoop.Source
    var input: [UInt8] = []
    var attached: CInt = -1
  }

  private static let listenTag = UInt32.max

  init(path: String, loop: EventLoop, answer: @escaping @Sendable (ControlRequest, CInt) -> ControlReply) throws {
    let fd = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    guard fd >= 0 else { throw HostError(operation: "socket", errno: -fd) }
    var result = unsafe lx_unix_listen(fd, path, CInt(Self.clientLimit))
    if result == -EADDRINUSE, !Self.isAlive(path) {
      // A socket left behind by a machine that was killed.
      unsafe lx_unlink(path)
      result = unsafe lx_unix_listen(fd, path, CInt(Self.clientLimit))
    }
    guard result >= 0 else {
      lx_close(fd)
      if result == -EADDRINUSE {
        throw Failure("control socket \(path) is in use by another machine; choose another path", .busy)
      }
      throw Failure(
        "cannot create control socket \(path): \(unsafe String(cString: lx_strerror(-result))); choose a path you may write to",
        .cannotCreate)
    }
    self.path = path
    listener = fd
    self.loop = loop
    self.answer = answer
    _ = try loop.register(fd, events: EPOLLIN.rawValue, handler: self, tag: Self.listenTag)
  }

  func close() {
    unsafe lx_unlink(path)
    lx_close(listener)
  }

  private static func isAlive(_ path: String) -> Bool {
    let fd = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    defer { lx_close(fd) }
    return unsafe lx_unix_connect(fd, path) >= 0
  }

  func ready(tag: UInt32, events: UInt32) {
    if tag == Self.listenTag { accept() } else { receive(Int(tag)) }
  }

  private func accept() {
    let fd = lx_accept(listener)
    guard fd >= 0 else { return }
    let accepted = clients.withLock { clients -> Bool in
      guard
        let index = clients.firstIndex(where: { $0 == nil }),
        let source = try? loop.register(fd, events: EPOLLIN.rawValue, handler: self, tag: UInt32(index))
      else { return false }
      clients[index] = Client(descriptor: fd, source: source)
      return true
    }
    if !accepted { lx_close(fd) }
  }

  private func receive(_ index: Int) {
    guard var client = clients.withLock({ $0[index] }) else { return }
    var attached: CInt = -1
    let got = unsafe withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 8) { buffer in
      let got = unsafe lx_receive_fd(client.descriptor, buffer.baseAddress, buffer.count, &attached)
      if got > 0 { unsafe client.input.append(contentsOf: buffer[..<got]) }
      return got
    }
    if attached >= 0 {
      if client.attached >= 0 { lx_close(client.attached) }
      client.attached = attached
    }
    if got == -Int(EAGAIN) || got == -Int(EINTR) { return store(client, at: index) }
    guard got > 0 else { return drop(client, at: index) }
    while let end = client.input.firstIndex(of: UInt8(ascii: "\n")) {
      let line = client.input[..<end]
      let reply: ControlReply
      if let request = ControlCodec.value(ControlRequest.self, line) {
        reply = answer(request, client.attached)
      } else {
        let known = ControlRequest.Command.allCases.map(\.rawValue).joined(separator: ", ")
        reply = .failure("not a request; send one JSON object a line, {\"command\": …} with one of \(known)")
      }
      if client.attached >= 0 { lx_close(client.attached) }
      client.attached = -1
      client.input.removeSubrange(...end)
      guard send(ControlCodec.line(reply), to: client.descriptor) else { return drop(client, at: index) }
    }
    guard client.input.count <= ControlCodec.lineLimit else { return drop(client, at: index) }
    store(client, at: index)
  }

  /// A client that does not read its replies is dropped: the socket buffer holds many.
  private func send(_ bytes: [UInt8], to descriptor: CInt) -> Bool {
    unsafe bytes.withUnsafeBytes { unsafe lx_send(descriptor, $0.baseAddress, $0.count) == $0.count }
  }

  private func store(_ client: Client, at index: Int) { clients.withLock { $0[index] = client } }

  private func drop(_ client: Client, at index: Int) {
    loop.unregister(client.source)
    if client.attached >= 0 { lx_close(client.attached) }
    lx_close(client.descriptor)
    clients.withLock { $0[index] = nil }
  }
}
