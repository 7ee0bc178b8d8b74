import LabC

/// The way of received bytes: to the input buffer, or straight into the value being stored.
extension KV {
  /// Moves received bytes to the input buffer (or, while a value comes in, leaves them for ``receiveValue``).
  static func takeInput(_ c: Connection) {
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

  static func consume(_ c: Connection, _ p: UnsafeMutablePointer<pbuf>, _ n: Int) {
    c.pointee.waiting = dropFront(p, n)
    if let pcb = c.pointee.pcb, n > 0 { tcp_recved(pcb, UInt16(n)) }
  }

  static func isInputFull(_ c: Connection) -> Bool {
    c.pointee.inputStart == 0 && c.pointee.inputEnd == c.pointee.inputCapacity
  }

  /// Feeds the value being received (or swallowed). True when it is complete.
  static func receiveValue(_ c: Connection) -> Bool {
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
  static func feed(_ c: Connection, _ source: UnsafePointer<UInt8>, _ available: Int) -> Int {
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
  static func answerNextKey(_ c: Connection) {
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
}
