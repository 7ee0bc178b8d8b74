import LabC

/// One client of the key-value store. Everything it can make us keep is bounded: an input buffer, one value being
/// received, one being sent, and a few sent values not yet acknowledged.
struct KVConnection {
  static let inputSize = 8192
  static let mostInFlight = 32

  enum Several: UInt8 { case none, tokens, bulk }

  var pcb: UnsafeMutablePointer<tcp_pcb>?
  var isRedis: Bool
  /// Bytes taken from the stream and not yet understood: input[inputStart..<inputEnd].
  var input: UnsafeMutablePointer<UInt8>
  var inputCapacity: Int
  var inputStart: Int
  var inputEnd: Int
  /// Received data not yet taken.
  var waiting: UnsafeMutablePointer<pbuf>?

  /// A value being received: bytes go straight into the item.
  var receiving: ValueCursor?
  var storing: StoreRequest
  /// Bytes to be thrown away: a value too large to keep.
  var swallow: UInt64

  /// A value being sent from where it is stored.
  var sending: ValueCursor?
  /// A command of several keys that is answered key by key: where it goes on, where it ends.
  var several: Several
  var severalAt: Int
  var severalEnd: Int
  var severalLeft: UInt64
  var severalWithCAS: Bool

  /// Values sent and not yet acknowledged, a ring: item and the stream position at which it ends.
  var inFlight: UnsafeMutablePointer<InFlight>
  var inFlightHead: Int
  var inFlightCount: Int
  var written: UInt64
  var acknowledged: UInt64
  var uncopiedInFlight: UInt64

  /// No more commands: close when what is on its way has arrived.
  var closing: Bool
  /// The client will send no more: close when all it asked for is answered.
  var peerClosed: Bool
  var lastProgress: UInt64
}

struct InFlight {
  var item: UnsafeMutablePointer<Item>?
  var end: UInt64
}

/// What is to be done with a value once it has arrived.
struct StoreRequest {
  enum Kind: UInt8 { case set, add, replace, cas, append, prepend }

  var kind = Kind.set
  var silent = false
  var cas: UInt64 = 0
  /// Bytes of the line end after the value that have still to come.
  var lineEnd = 0
  var badLineEnd = false
}

/// The key-value service: TCP and UDP 11211 (memcached text), TCP 6379 (RESP).
enum KV {
  typealias Connection = UnsafeMutablePointer<KVConnection>

  nonisolated(unsafe) private static var connections: Connection! = nil
  nonisolated(unsafe) private static var limit = 0
  nonisolated(unsafe) private(set) static var open = 0
  nonisolated(unsafe) static var total: UInt64 = 0
  nonisolated(unsafe) static var refused: UInt64 = 0
  /// Replies of the connection at hand, not yet given to TCP.
  nonisolated(unsafe) static var reply = ByteWriter(UnsafeMutablePointer<UInt8>(bitPattern: 16)!, capacity: 0)
  nonisolated(unsafe) private static var replyBuffer: UnsafeMutablePointer<UInt8>! = nil
  nonisolated(unsafe) private static var datagramReply: UnsafeMutablePointer<UInt8>! = nil

  private static let replySize = 16384
  /// A reply that is longer does not go over UDP.
  private static let datagramReplySize = 64 * 1024
  /// The longest reply to one key apart from a value that is sent where it lies.
  private static let replyRoom = 2048
  private static let copyBelow = 1024
  private static let mostCopied: UInt64 = 32 * 1024
  private static let stallLimit: UInt64 = 30_000_000_000

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
    Store.setUp()
    listen(on: 11211) { _, pcb, error in KV.accept(pcb, error, redis: false) }
    listen(on: 6379) { _, pcb, error in KV.accept(pcb, error, redis: true) }
    let udp = udp_new()
    _ = udp_bind(udp, nil, 11211)
    udp_recv(udp, { _, pcb, datagram, from, port in
      guard let datagram else { return }
      KV.serve(pcb, datagram, from, port)
      pbuf_free(datagram)
    }, nil)
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

  private static func prepare(_ c: Connection, redis: Bool) {
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
  private static func forget(_ c: Connection) {
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

  private static func abort(_ c: Connection) -> err_t {
    if let pcb = c.pointee.pcb {
      detach(pcb)
      tcp_abort(pcb)
    }
    forget(c)
    return err_t(ERR_ABRT.rawValue)
  }

  private static func detach(_ pcb: UnsafeMutablePointer<tcp_pcb>) {
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
    let result = work(c)
    // One who sends on without reading must not hold what others need to be heard.
    if result == ok, c.pointee.pcb != nil, c.pointee.waiting != nil, Interface.isShortOfBuffers { return abort(c) }
    return result
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
    let stuck = c.pointee.sending != nil || c.pointee.receiving != nil || c.pointee.closing
      || c.pointee.waiting != nil || c.pointee.written != c.pointee.acknowledged
    if stuck, Clock.now - c.pointee.lastProgress > stallLimit { return abort(c) }
    return work(c)
  }

  // MARK: Work

  /// Goes on with the connection as far as it can: finish what is being sent, then command after command.
  private static func work(_ c: Connection) -> err_t {
    reply = ByteWriter(replyBuffer, capacity: replySize)
    var answeredAll = false
    while hasRoom(c), !c.pointee.closing {
      if c.pointee.sending != nil {
        guard flush(c), pump(c) else { break }
        reply.text("\r\n")
        continue
      }
      if c.pointee.several != .none {
        answerNextKey(c)
        continue
      }
      takeInput(c)
      if c.pointee.receiving != nil || c.pointee.swallow > 0 {
        guard receiveValue(c) else {
          answeredAll = true
          break
        }
        continue
      }
      let understood = c.pointee.isRedis ? Redis.command(c) : Memcached.command(c)
      if !understood {
        answeredAll = true
        break
      }
    }
    guard flush(c) else { return abort(c) }
    guard let pcb = c.pointee.pcb else { return ok }
    tcp_output(pcb)
    return c.pointee.closing || (c.pointee.peerClosed && answeredAll) ? close(c) : ok
  }

  /// Closes once nothing is left to be sent and no value in flight needs us any more.
  private static func close(_ c: Connection) -> err_t {
    guard c.pointee.sending == nil, c.pointee.inFlightCount == 0, let pcb = c.pointee.pcb else { return ok }
    detach(pcb)
    if tcp_close(pcb) != ok {
      tcp_abort(pcb)
      forget(c)
      return err_t(ERR_ABRT.rawValue)
    }
    forget(c)
    return ok
  }

  /// Whether one more reply can be taken without going over a bound.
  private static func hasRoom(_ c: Connection) -> Bool {
    guard let pcb = c.pointee.pcb else { return !reply.overflowed }
    if reply.room < replyRoom, !flush(c) { return false }
    let copied = c.pointee.written - c.pointee.acknowledged - min(
      c.pointee.uncopiedInFlight, c.pointee.written - c.pointee.acknowledged)
    return Int(tcp_send_space(pcb)) - reply.count > replyRoom && tcp_send_queue_length(pcb) < 900
      && copied + UInt64(reply.count) < mostCopied && c.pointee.inFlightCount < KVConnection.mostInFlight
  }

  /// Gives the collected replies to TCP. False: lwIP's memory is exhausted, the connection cannot go on.
  private static func flush(_ c: Connection) -> Bool {
    guard let pcb = c.pointee.pcb, reply.count > 0 else { return true }
    guard tcp_write(pcb, reply.base, UInt16(reply.count), UInt8(TCP_WRITE_FLAG_COPY)) == ok else { return false }
    c.pointee.written += UInt64(reply.count)
    reply.count = 0
    return true
  }

  /// Sends on the value at hand from where it is stored. True when all of it has been given to TCP.
  private static func pump(_ c: Connection) -> Bool {
    guard let pcb = c.pointee.pcb, var cursor = c.pointee.sending else { return true }
    defer { if c.pointee.sending != nil { c.pointee.sending = cursor } }
    while cursor.left > 0 {
      let piece = cursor.piece
      let n = min(piece.count, Int(tcp_send_space(pcb)))
      guard n > 0, tcp_write(pcb, piece.start, UInt16(n), UInt8(TCP_WRITE_FLAG_MORE)) == ok else { return false }
      cursor.advance(n)
      c.pointee.written += UInt64(n)
      c.pointee.uncopiedInFlight += UInt64(n)
    }
    let slot = (c.pointee.inFlightHead + c.pointee.inFlightCount) % KVConnection.mostInFlight
    c.pointee.inFlight[slot] = InFlight(item: cursor.item, end: c.pointee.written)
    c.pointee.inFlightCount += 1
    c.pointee.sending = nil
    return true
  }

  /// The value as part of a reply: small ones are copied, large ones are sent from the store.
  static func emitValue(_ c: Connection, _ item: UnsafeMutablePointer<Item>) {
    var cursor = ValueCursor(item)
    if c.pointee.pcb == nil || cursor.left < copyBelow {
      while cursor.left > 0 {
        let piece = cursor.piece
        reply.raw(piece.start, piece.count)
        cursor.advance(piece.count)
      }
      reply.text("\r\n")
      return
    }
    Store.retain(item)
    item.pointee.wasSent = true
    c.pointee.sending = cursor
  }

  // MARK: Input

  /// Moves received bytes to the input buffer (or, while a value comes in, leaves them for ``receiveValue``).
  private static func takeInput(_ c: Connection) {
    guard c.pointee.receiving == nil, c.pointee.swallow == 0, c.pointee.waiting != nil else { return }
    if c.pointee.inputStart > 0 {
      let left = c.pointee.inputEnd - c.pointee.inputStart
      if left == 0 {
        c.pointee.inputStart = 0
        c.pointee.inputEnd = 0
      } else if c.pointee.inputCapacity - c.pointee.inputEnd < 2048 {
        _ = memmove(c.pointee.input, c.pointee.input + c.pointee.inputStart, left)
        c.pointee.inputStart = 0
        c.pointee.inputEnd = left
      }
    }
    while let p = c.pointee.waiting {
      let n = min(Int(p.pointee.len), c.pointee.inputCapacity - c.pointee.inputEnd)
      if n == 0, p.pointee.len > 0 { return }
      _ = memcpy(c.pointee.input + c.pointee.inputEnd, p.pointee.payload, n)
      c.pointee.inputEnd += n
      consume(c, p, n)
    }
  }

  private static func consume(_ c: Connection, _ p: UnsafeMutablePointer<pbuf>, _ n: Int) {
    c.pointee.waiting = dropFront(p, n)
    if let pcb = c.pointee.pcb, n > 0 { tcp_recved(pcb, UInt16(n)) }
  }

  static func isInputFull(_ c: Connection) -> Bool {
    c.pointee.inputStart == 0 && c.pointee.inputEnd == c.pointee.inputCapacity
  }

  /// Feeds the value being received (or swallowed). True when it is complete.
  private static func receiveValue(_ c: Connection) -> Bool {
    while true {
      var source: UnsafePointer<UInt8>
      var available: Int
      let fromBuffer = c.pointee.inputEnd > c.pointee.inputStart
      if fromBuffer {
        source = UnsafePointer(c.pointee.input + c.pointee.inputStart)
        available = c.pointee.inputEnd - c.pointee.inputStart
      } else if let p = c.pointee.waiting {
        source = UnsafePointer(p.pointee.payload.assumingMemoryBound(to: UInt8.self))
        available = Int(p.pointee.len)
      } else {
        return false
      }
      let n = feed(c, source, available)
      if fromBuffer {
        c.pointee.inputStart += n
      } else if let p = c.pointee.waiting {
        consume(c, p, n)
      }
      if c.pointee.receiving == nil, c.pointee.swallow == 0 { return true }
    }
  }

  /// Takes what belongs to the value from `source`; returns how much that was.
  private static func feed(_ c: Connection, _ source: UnsafePointer<UInt8>, _ available: Int) -> Int {
    if c.pointee.swallow > 0 {
      let n = Int(min(UInt64(available), c.pointee.swallow))
      c.pointee.swallow -= UInt64(n)
      return n
    }
    guard var cursor = c.pointee.receiving else { return 0 }
    var used = min(cursor.left, available)
    cursor.fill(source, used)
    while used < available, c.pointee.storing.lineEnd > 0, cursor.left == 0 {
      let expected: UInt8 = c.pointee.storing.lineEnd == 2 ? 0x0d : 0x0a
      if source[used] != expected { c.pointee.storing.badLineEnd = true }
      c.pointee.storing.lineEnd -= 1
      used += 1
    }
    c.pointee.receiving = cursor
    if cursor.left == 0, c.pointee.storing.lineEnd == 0 {
      c.pointee.receiving = nil
      if c.pointee.isRedis { Redis.store(c, cursor.item) } else { Memcached.store(c, cursor.item) }
    }
    return used
  }

  /// The next key of a command with several.
  private static func answerNextKey(_ c: Connection) {
    var rest = Bytes(
      start: UnsafePointer(c.pointee.input + c.pointee.severalAt), count: c.pointee.severalEnd - c.pointee.severalAt)
    let key: Bytes?
    if c.pointee.several == .tokens {
      key = rest.next(separator: 0x20)
    } else {
      key = c.pointee.severalLeft > 0 ? Redis.bulk(&rest) : nil
    }
    guard let key else {
      c.pointee.several = .none
      c.pointee.inputStart = c.pointee.severalEnd
      if !c.pointee.isRedis { Memcached.endOfKeys(c) }
      return
    }
    c.pointee.severalAt = c.pointee.severalEnd - rest.count
    c.pointee.severalLeft &-= 1
    if c.pointee.isRedis { Redis.value(c, key) } else { Memcached.value(c, key) }
  }

  // MARK: Datagrams

  /// memcached over UDP: an 8-byte frame header (request id, number, count, 0), then a text command.
  private static func serve(
    _ pcb: UnsafeMutablePointer<udp_pcb>?, _ datagram: UnsafeMutablePointer<pbuf>, _ from: UnsafePointer<ip_addr_t>?,
    _ port: UInt16
  ) {
    let c = connections + limit
    let length = Int(datagram.pointee.tot_len)
    guard length > 8, length <= c.pointee.inputCapacity else { return }
    prepare(c, redis: false)
    c.pointee.pcb = nil
    reply = ByteWriter(datagramReply, capacity: datagramReplySize)
    pbuf_copy_partial(datagram, c.pointee.input, UInt16(length), 0)
    let requestID = UnsafeRawPointer(c.pointee.input).loadUnaligned(as: UInt16.self)
    let count = UnsafeRawPointer(c.pointee.input).loadUnaligned(fromByteOffset: 4, as: UInt16.self).byteSwapped
    c.pointee.inputStart = 8
    c.pointee.inputEnd = length
    if count != 1 {
      reply.text("SERVER_ERROR multi-packet request not supported\r\n")
    } else {
      answerDatagram(c)
    }
    if let receiving = c.pointee.receiving { Store.release(receiving.item) }
    c.pointee.receiving = nil
    if reply.overflowed {
      reply.count = 0
      reply.text("SERVER_ERROR reply too large for UDP\r\n")
    }
    send(pcb, requestID, from, port)
  }

  private static func answerDatagram(_ c: Connection) {
    while !reply.overflowed, !c.pointee.closing {
      if c.pointee.several != .none {
        answerNextKey(c)
      } else if c.pointee.receiving != nil || c.pointee.swallow > 0 {
        if !receiveValue(c) { return }
      } else if !Memcached.command(c) {
        return
      }
    }
  }

  private static func send(
    _ pcb: UnsafeMutablePointer<udp_pcb>?, _ requestID: UInt16, _ to: UnsafePointer<ip_addr_t>?, _ port: UInt16
  ) {
    let most = 1400
    let total = UInt16((reply.count + most - 1) / most)
    for number in 0..<total {
      let start = Int(number) * most
      let n = min(most, reply.count - start)
      guard let p = pbuf_alloc(PBUF_TRANSPORT, UInt16(n + 8), PBUF_RAM), let payload = p.pointee.payload else { return }
      payload.storeBytes(of: requestID, as: UInt16.self)
      payload.storeBytes(of: number.byteSwapped, toByteOffset: 2, as: UInt16.self)
      payload.storeBytes(of: total.byteSwapped, toByteOffset: 4, as: UInt16.self)
      payload.storeBytes(of: 0, toByteOffset: 6, as: UInt16.self)
      _ = memcpy(payload + 8, reply.base + start, n)
      _ = udp_sendto(pcb, p, to, port)
      pbuf_free(p)
    }
  }
}
