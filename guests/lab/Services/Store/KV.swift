import LabC

/// The key-value service: TCP and UDP 11211 (memcached text), TCP 6379 (RESP).
enum KV {
  typealias Connection = UnsafeMutablePointer<KVConnection>

  nonisolated(unsafe) static var connections = Connection.unset
  nonisolated(unsafe) static var limit = 0
  nonisolated(unsafe) private(set) static var open = 0
  nonisolated(unsafe) static var total: UInt64 = 0
  nonisolated(unsafe) static var refused: UInt64 = 0
  /// Replies of the connection at hand, not yet given to TCP.
  nonisolated(unsafe) static var reply = ByteWriter(.unset, capacity: 0)
  nonisolated(unsafe) static var replyBuffer = UnsafeMutablePointer<UInt8>.unset
  nonisolated(unsafe) static var datagramReply = UnsafeMutablePointer<UInt8>.unset

  static let replySize = 16384
  /// A reply that is longer does not go over UDP.
  static let datagramReplySize = 64 * 1024
  /// The longest reply to one key apart from a value that is sent where it lies.
  static let replyRoom = 2048
  static let copyBelow = 1024
  static let mostCopied: UInt64 = 32 * 1024
  static let stallLimit: UInt64 = 30_000_000_000

  static func start() {
    limit = Int(min(CommandLine.number("connections", default: 256), 480))
    connections = Arena.takeZeroed(KVConnection.self, count: limit + 1)
    for i in 0...limit {
      let size = i == limit ? 65536 : KVConnection.inputSize  // the last one serves datagrams
      connections[i].input = Arena.take(size).assumingMemoryBound(to: UInt8.self)
      connections[i].inputCapacity = size
      connections[i].inFlight = Arena.takeZeroed(InFlight.self, count: KVConnection.mostInFlight)
      connections[i].receiving = nil
      connections[i].sending = nil
    }
    replyBuffer = Arena.take(replySize).assumingMemoryBound(to: UInt8.self)
    datagramReply = Arena.take(datagramReplySize).assumingMemoryBound(to: UInt8.self)
    Sources.setUp()
    Store.setUp()
    listen(on: 11211) { _, pcb, error in KV.accept(pcb, error, redis: false) }
    listen(on: 6379) { _, pcb, error in KV.accept(pcb, error, redis: true) }
    receiveDatagrams(
      on: 11211,
      { _, pcb, datagram, from, port in
        guard let datagram else { return }
        KV.serve(pcb, datagram, from, port)
        pbuf_free(datagram)
      })
  }

  // MARK: Life of a connection

  private static func accept(_ pcb: UnsafeMutablePointer<tcp_pcb>?, _ error: err_t, redis: Bool) -> err_t {
    guard let pcb, error == ok else { return err_t(ERR_VAL.rawValue) }
    guard let c = freeSlot() else {
      refused += 1
      tcp_abort(pcb)
      return err_t(ERR_ABRT.rawValue)
    }
    prepare(c, redis: redis)
    c.pointee.pcb = pcb
    open += 1
    total += 1
    tcp_no_delay(pcb)
    tcp_keep_alive(pcb)
    tcp_arg(pcb, c)
    tcp_recv(pcb) { c, pcb, data, _ in KV.received(c!.assumingMemoryBound(to: KVConnection.self), data) }
    tcp_sent(pcb) { c, _, length in KV.sent(c!.assumingMemoryBound(to: KVConnection.self), UInt64(length)) }
    tcp_err(pcb) { c, _ in
      guard let c else { return }
      let connection = c.assumingMemoryBound(to: KVConnection.self)
      connection.pointee.pcb = nil
      KV.forget(connection)
    }
    tcp_poll(pcb, { c, _ in KV.tick(c!.assumingMemoryBound(to: KVConnection.self)) }, 4)
    return ok
  }

  private static func freeSlot() -> Connection? {
    for i in 0..<limit where connections[i].pcb == nil { return connections + i }
    return nil
  }

  static func prepare(_ c: Connection, redis: Bool) {
    c.pointee.isRedis = redis
    c.pointee.inputStart = 0
    c.pointee.inputEnd = 0
    c.pointee.waiting = nil
    c.pointee.receiving = nil
    c.pointee.swallow = 0
    c.pointee.sending = nil
    c.pointee.several = .none
    c.pointee.inFlightHead = 0
    c.pointee.inFlightCount = 0
    c.pointee.written = 0
    c.pointee.acknowledged = 0
    c.pointee.uncopiedInFlight = 0
    c.pointee.closing = false
    c.pointee.peerClosed = false
    c.pointee.lastProgress = Clock.now
  }

  /// Gives back everything the connection holds.
  static func forget(_ c: Connection) {
    if let waiting = c.pointee.waiting { pbuf_free(waiting) }
    c.pointee.waiting = nil
    if let receiving = c.pointee.receiving { Store.release(receiving.item) }
    c.pointee.receiving = nil
    if let sending = c.pointee.sending { Store.release(sending.item) }
    c.pointee.sending = nil
    while c.pointee.inFlightCount > 0 { releaseOldest(c) }
    c.pointee.pcb = nil
    open -= 1
  }

  static func abort(_ c: Connection) -> err_t {
    if let pcb = c.pointee.pcb {
      detach(pcb)
      tcp_abort(pcb)
    }
    forget(c)
    return err_t(ERR_ABRT.rawValue)
  }

  static func detach(_ pcb: UnsafeMutablePointer<tcp_pcb>) {
    tcp_arg(pcb, nil)
    tcp_recv(pcb, nil)
    tcp_sent(pcb, nil)
    tcp_err(pcb, nil)
    tcp_poll(pcb, nil, 0)
  }

  private static func received(_ c: Connection, _ data: UnsafeMutablePointer<pbuf>?) -> err_t {
    if c.pointee.sending == nil, c.pointee.written == c.pointee.acknowledged { c.pointee.lastProgress = Clock.now }
    guard let data else {
      c.pointee.peerClosed = true
      return work(c)
    }
    if let waiting = c.pointee.waiting { pbuf_cat(waiting, data) } else { c.pointee.waiting = data }
    return work(c)
  }

  /// In the main loop: who sends on without reading must not hold what others need to be heard. While receive buffers are
  /// short, the one with most unread data is cut off.
  static func poll() {
    guard open > 0, Interface.isShortOfBuffers else { return }
    var worst: Connection?
    var most = 8192
    for i in 0..<limit where connections[i].waiting != nil {
      let unread = unread(connections + i)
      if unread > most {
        most = unread
        worst = connections + i
      }
    }
    if let worst { _ = abort(worst) }
  }

  private static func unread(_ c: Connection) -> Int {
    var count = 0
    var piece = c.pointee.waiting
    while let p = piece {
      count += Int(p.pointee.len)
      piece = p.pointee.next
    }
    return count
  }

  private static func sent(_ c: Connection, _ length: UInt64) -> err_t {
    c.pointee.lastProgress = Clock.now
    c.pointee.acknowledged += length
    while c.pointee.inFlightCount > 0,
      c.pointee.inFlight[c.pointee.inFlightHead].end <= c.pointee.acknowledged
    {
      releaseOldest(c)
    }
    return work(c)
  }

  private static func releaseOldest(_ c: Connection) {
    let head = c.pointee.inFlightHead
    if let item = c.pointee.inFlight[head].item {
      c.pointee.uncopiedInFlight -= min(c.pointee.uncopiedInFlight, UInt64(item.pointee.valueLength))
      Store.release(item)
    }
    c.pointee.inFlightHead = (head + 1) % KVConnection.mostInFlight
    c.pointee.inFlightCount -= 1
  }

  /// Every two seconds: clients that keep something of ours and do not move are cut off.
  private static func tick(_ c: Connection) -> err_t {
    let stuck =
      c.pointee.sending != nil || c.pointee.receiving != nil || c.pointee.closing
      || c.pointee.waiting != nil || c.pointee.written != c.pointee.acknowledged
    if stuck, Clock.now - c.pointee.lastProgress > stallLimit { return abort(c) }
    return work(c)
  }
}
