import LabC

/// memcached over UDP.
extension KV {
  /// memcached over UDP: an 8-byte frame header (request id, number, count, 0), then a text command.
  static func serve(
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
