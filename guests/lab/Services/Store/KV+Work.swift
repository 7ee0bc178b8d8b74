import LabC

/// From input to replies: what a connection does each time something came in or was acknowledged.
extension KV {
  /// Goes on with the connection as far as it can: finish what is being sent, then command after command.
  static func work(_ c: Connection) -> err_t {
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
  static func close(_ c: Connection) -> err_t {
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
  static func hasRoom(_ c: Connection) -> Bool {
    guard let pcb = c.pointee.pcb else { return !reply.overflowed }
    if reply.room < replyRoom, !flush(c) { return false }
    let unacknowledged = c.pointee.written - c.pointee.acknowledged
    let copied = unacknowledged - min(c.pointee.uncopiedInFlight, unacknowledged)
    if lwip_memory_free() < Reserve.forReplies { return false }
    return Int(tcp_send_space(pcb)) - reply.count > replyRoom && tcp_send_queue_length(pcb) < 900
      && copied + UInt64(reply.count) < mostCopied && c.pointee.inFlightCount < KVConnection.mostInFlight
  }

  /// Gives the collected replies to TCP. False: lwIP's memory is exhausted, the connection cannot go on.
  static func flush(_ c: Connection) -> Bool {
    guard let pcb = c.pointee.pcb, reply.count > 0 else { return true }
    guard tcp_write(pcb, reply.base, UInt16(reply.count), UInt8(TCP_WRITE_FLAG_COPY)) == ok else { return false }
    c.pointee.written += UInt64(reply.count)
    reply.count = 0
    return true
  }

  /// Sends on the value at hand from where it is stored. True when all of it has been given to TCP.
  static func pump(_ c: Connection) -> Bool {
    guard let pcb = c.pointee.pcb, var cursor = c.pointee.sending else { return true }
    defer { if c.pointee.sending != nil { c.pointee.sending = cursor } }
    while cursor.left > 0 {
      let piece = cursor.piece
      let n = min(piece.count, Int(tcp_send_space(pcb)))
      guard lwip_memory_free() > Reserve.forLargeValues else { return false }
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

  /// The value as part of a reply that begins at `start` of the collected ones: small ones are copied, large ones are sent from
  /// the store.
  static func emitValue(_ c: Connection, _ item: UnsafeMutablePointer<Item>, from start: Int) {
    if Sources.isHeard, item.pointee.expiry == 0 { tellSources(c, item, from: start) }
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

  /// What the reply with an item's value is made of. An item's number is given once only, so that the same number, key and value
  /// mean that it was the value of its key.
  private static func tellSources(_ c: Connection, _ item: UnsafeMutablePointer<Item>, from start: Int) {
    guard let pcb = c.pointee.pcb else { return }
    let valueAt = reply.count - start
    Sources.tell(pcb, ahead: start, length: valueAt + Int(item.pointee.valueLength) + 2) { reply in
      let base = UnsafeRawPointer(item)
      reply.dependsOn(base + Item.answerStart, Item.answerSize)
      reply.dependsOn(base + Item.headerSize, Int(item.pointee.keyLength))
      var cursor = ValueCursor(item)
      while cursor.left > 0 {
        let piece = cursor.piece
        reply.copies(piece.start, piece.count, at: valueAt + cursor.offset)
        cursor.advance(piece.count)
      }
    }
  }

  /// A reply from `start` on that depends on nothing but what was asked, or on a bucket in which there is nothing.
  static func tellConstant(_ c: Connection, from start: Int, emptyBucket: UnsafeRawPointer? = nil) {
    guard Sources.isHeard, let pcb = c.pointee.pcb else { return }
    Sources.tell(pcb, ahead: start, length: reply.count - start) { reply in
      if let emptyBucket { reply.dependsOn(emptyBucket, 8) }
    }
  }
}
