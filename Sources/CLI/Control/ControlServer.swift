import CLinux
import Devices
import Glibc
import Synchronization

/// The control socket of a running machine: accepts a few clients and answers their lines. Runs on the control thread.
final class ControlServer: EventHandler {
  static let clientLimit = 8

  /// Nanoseconds until a client is looked for again when no descriptor was free for one.
  private static let rest: UInt64 = 1_000_000_000

  private let path: String
  private let listener: CInt
  /// What was made at `path`.
  private let identity: Identity?
  private let listening = Mutex<EventLoop.Source?>(nil)
  private let timer: CInt
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
  private static let timerTag = UInt32.max - 1

  init(path: String, loop: EventLoop, answer: @escaping @Sendable (ControlRequest, CInt) -> ControlReply) throws {
    self.path = path
    self.loop = loop
    self.answer = answer
    (listener, identity) = try Self.listen(at: path)
    timer = lx_timerfd()
    guard timer >= 0 else { throw HostError(operation: "timerfd_create", errno: -timer) }
    _ = try loop.register(timer, events: EPOLLIN.rawValue, handler: self, tag: Self.timerTag)
    let source = try loop.register(listener, events: EPOLLIN.rawValue, handler: self, tag: Self.listenTag)
    listening.withLock { $0 = source }
  }

  func close() {
    // Not one that another process has made at the same path since.
    if let identity, Self.identity(of: path) == identity { unsafe lx_unlink(path) }
    lx_close(listener)
  }

  // MARK: The socket's path

  /// A listening socket at `path`, and its identity there.
  private static func listen(at path: String) throws -> (CInt, Identity?) {
    let fd = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    guard fd >= 0 else { throw HostError(operation: "socket", errno: -fd) }
    // Between looking at an old socket and taking its place nobody else may do so. A folder that can't be locked goes without.
    let lock = unsafe lx_lock_folder(path)
    defer { if lock >= 0 { lx_close(lock) } }
    var result = unsafe lx_unix_listen(fd, path, CInt(clientLimit))
    if result == -EADDRINUSE, try isLeftBehind(path) {
      unsafe lx_unlink(path)
      result = unsafe lx_unix_listen(fd, path, CInt(clientLimit))
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
    return (fd, identity(of: path))
  }

  /// Whether the socket at `path` belongs to nobody, such as that of a machine that was killed. One whose backlog is full is alive.
  private static func isLeftBehind(_ path: String) throws -> Bool {
    guard identity(of: path) != nil else {
      throw Failure("\(path) exists and is not a socket; choose another path for --control", .cannotCreate)
    }
    let fd = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    defer { lx_close(fd) }
    return unsafe lx_unix_connect(fd, path) == -ECONNREFUSED
  }

  private struct Identity: Equatable {
    var device: UInt64
    var inode: UInt64
  }

  /// Of a socket at `path`; nil for anything else.
  private static func identity(of path: String) -> Identity? {
    var words: [UInt64] = [0, 0]
    return unsafe lx_unix_identity(path, &words) == 1 ? Identity(device: words[0], inode: words[1]) : nil
  }

  // MARK: Clients

  func ready(tag: UInt32, events: UInt32) {
    switch tag {
    case Self.listenTag: accept()
    case Self.timerTag:
      _ = lx_eventfd_take(timer)
      listen(true)
    default: receive(Int(tag))
    }
  }

  private func listen(_ wanted: Bool) {
    listening.withLock { if let source = $0 { loop.setInterest(source, events: wanted ? EPOLLIN.rawValue : 0) } }
  }

  private func accept() {
    let fd = lx_accept(listener)
    guard fd >= 0 else {
      if [-EAGAIN, -EINTR, -ECONNABORTED].contains(fd) { return }
      // No descriptor is free, and the client still waits: without a rest this would come again at once.
      listen(false)
      lx_timerfd_arm(timer, Self.rest)
      return
    }
    let accepted = clients.withLock { clients -> Bool in
      guard
        let index = clients.firstIndex(where: { $0 == nil }),
        let source = try? loop.register(fd, events: EPOLLIN.rawValue, handler: self, tag: UInt32(index))
      else { return false }
      clients[index] = Client(descriptor: fd, source: source)
      return true
    }
    guard !accepted else { return }
    _ = send(
      ControlCodec.line(ControlReply.failure("\(Self.clientLimit) clients are connected; end one of them first")),
      to: fd)
    lx_close(fd)
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
