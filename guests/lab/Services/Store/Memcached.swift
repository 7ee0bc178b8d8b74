import LabC

/// memcached's text protocol.
enum Memcached {
  /// Handles the next command line, if there is a whole one.
  static func command(_ c: KV.Connection) -> Bool {
    let all = Bytes(
      start: UnsafePointer(c.pointee.input + c.pointee.inputStart), count: c.pointee.inputEnd - c.pointee.inputStart)
    guard let end = all.firstIndex(of: 0x0a) else {
      if KV.isInputFull(c) {
        KV.reply.text("CLIENT_ERROR line too long\r\n")
        c.pointee.closing = true
        c.pointee.inputStart = c.pointee.inputEnd
      }
      return false
    }
    var line = Bytes(start: all.start, count: end > 0 && all[end - 1] == 0x0d ? end - 1 : end)
    let lineStart = c.pointee.inputStart
    c.pointee.inputStart += end + 1
    guard let name = line.next(separator: 0x20) else {
      KV.reply.text("ERROR\r\n")
      return true
    }
    if name.equals("get") || name.equals("gets") {
      // Answered key by key: the line stays where it is until then.
      guard !line.isEmpty else {
        KV.reply.text("ERROR\r\n")
        return true
      }
      let lineEnd = lineStart + (line.start - all.start) + line.count
      c.pointee.several = .tokens
      c.pointee.severalAt = lineStart + (line.start - all.start)
      c.pointee.severalEnd = lineEnd
      c.pointee.severalWithCAS = name.count == 4
      c.pointee.severalMissed = false
      return true
    }
    if let kind = storeKind(name) {
      beginStore(c, kind, line)
    } else {
      simple(c, name, line)
    }
    return true
  }

  // MARK: Reading

  static func value(_ c: KV.Connection, _ key: Bytes) {
    guard key.count <= Store.largestKey else {
      KV.reply.text("CLIENT_ERROR key too long\r\n")
      return
    }
    let start = KV.reply.count
    guard let item = Store.find(key) else {
      c.pointee.severalMissed = true
      return
    }
    KV.reply.text("VALUE ")
    KV.reply.bytes(key)
    KV.reply.byte(0x20)
    KV.reply.decimal(UInt64(item.pointee.clientFlags))
    KV.reply.byte(0x20)
    KV.reply.decimal(UInt64(item.pointee.valueLength))
    if c.pointee.severalWithCAS {
      KV.reply.byte(0x20)
      KV.reply.decimal(item.pointee.cas)
    }
    KV.reply.text("\r\n")
    KV.emitValue(c, item, from: start)
  }

  /// After the last key of a get: the rest of its line is passed over too.
  static func endOfKeys(_ c: KV.Connection) {
    while c.pointee.inputStart < c.pointee.inputEnd {
      let byte = c.pointee.input[c.pointee.inputStart]
      c.pointee.inputStart += 1
      if byte == 0x0a { break }
    }
    let start = KV.reply.count
    KV.reply.text("END\r\n")
    // That a key was not there is all that this may say of it.
    if !c.pointee.severalMissed { KV.tellConstant(c, from: start) }
  }

  // MARK: Storing

  private static func storeKind(_ name: Bytes) -> StoreRequest.Kind? {
    if name.equals("set") { return .set }
    if name.equals("add") { return .add }
    if name.equals("replace") { return .replace }
    if name.equals("append") { return .append }
    if name.equals("prepend") { return .prepend }
    if name.equals("cas") { return .cas }
    return nil
  }

  /// `set key flags exptime bytes [cas] [noreply]`
  private static func beginStore(_ c: KV.Connection, _ kind: StoreRequest.Kind, _ arguments: Bytes) {
    var rest = arguments
    var request = StoreRequest()
    request.kind = kind
    request.lineEnd = 2
    guard let key = rest.next(separator: 0x20), let flags = rest.next(separator: 0x20)?.decimal(),
      let expiry = rest.next(separator: 0x20)?.signedDecimal(), let length = rest.next(separator: 0x20)?.decimal(),
      flags <= UInt64(UInt32.max), length < 1 << 31
    else {
      KV.reply.text("CLIENT_ERROR bad command line format\r\n")
      return
    }
    if kind == .cas {
      guard let cas = rest.next(separator: 0x20)?.decimal() else {
        KV.reply.text("CLIENT_ERROR bad command line format\r\n")
        return
      }
      request.cas = cas
    }
    if let last = rest.next(separator: 0x20), last.equals("noreply") { request.silent = true }
    guard key.count <= Store.largestKey else {
      KV.reply.text("CLIENT_ERROR key too long\r\n")
      c.pointee.swallow = length + 2
      return
    }
    guard length <= UInt64(Store.largestValue) else {
      if !request.silent { KV.reply.text("SERVER_ERROR object too large for cache\r\n") }
      c.pointee.swallow = length + 2
      return
    }
    guard let item = Store.make(key, valueLength: Int(length)) else {
      if let old = Store.find(key) { Store.unlink(old) }
      if !request.silent { KV.reply.text("SERVER_ERROR out of memory storing object\r\n") }
      c.pointee.swallow = length + 2
      return
    }
    item.pointee.clientFlags = UInt32(flags)
    item.pointee.expiry = deadline(expiry)
    c.pointee.storing = request
    c.pointee.receiving = ValueCursor(item)
  }

  /// Seconds from now; negative is over already. Times of day are not known here: they count as never.
  private static func deadline(_ seconds: Int64) -> UInt64 {
    if seconds == 0 || seconds > 60 * 60 * 24 * 30 { return 0 }
    return seconds < 0 ? 1 : Clock.now + UInt64(seconds) * 1_000_000_000
  }

  /// The value has arrived.
  static func store(_ c: KV.Connection, _ item: UnsafeMutablePointer<Item>) {
    let request = c.pointee.storing
    if request.badLineEnd {
      c.pointee.storing.badLineEnd = false
      Store.release(item)
      KV.reply.text("CLIENT_ERROR bad data chunk\r\n")
      return
    }
    let old = Store.find(Store.key(item))
    switch request.kind {
    case .set: break
    case .add:
      if old != nil { return refuse(item, request, "NOT_STORED\r\n") }
    case .replace:
      if old == nil { return refuse(item, request, "NOT_STORED\r\n") }
    case .cas:
      guard let old else { return refuse(item, request, "NOT_FOUND\r\n") }
      if old.pointee.cas != request.cas { return refuse(item, request, "EXISTS\r\n") }
    case .append, .prepend:
      guard let old else { return refuse(item, request, "NOT_STORED\r\n") }
      return join(old, item, request)
    }
    Store.link(item)
    if !request.silent { KV.reply.text("STORED\r\n") }
  }

  private static func refuse(_ item: UnsafeMutablePointer<Item>, _ request: StoreRequest, _ text: StaticString) {
    Store.release(item)
    if !request.silent { KV.reply.text(text) }
  }

  private static func join(
    _ old: UnsafeMutablePointer<Item>, _ new: UnsafeMutablePointer<Item>, _ request: StoreRequest
  ) {
    let length = Int(old.pointee.valueLength) + Int(new.pointee.valueLength)
    Store.retain(old)
    defer { Store.release(old) }
    guard length <= Store.largestValue, let both = Store.make(Store.key(old), valueLength: length) else {
      return refuse(new, request, "SERVER_ERROR out of memory storing object\r\n")
    }
    both.pointee.clientFlags = old.pointee.clientFlags
    both.pointee.expiry = old.pointee.expiry
    var target = ValueCursor(both)
    copy(request.kind == .append ? old : new, &target)
    copy(request.kind == .append ? new : old, &target)
    Store.link(both)
    Store.release(new)
    if !request.silent { KV.reply.text("STORED\r\n") }
  }

  private static func copy(_ item: UnsafeMutablePointer<Item>, _ target: inout ValueCursor) {
    var source = ValueCursor(item)
    while source.left > 0 {
      let piece = source.piece
      target.fill(piece.start, piece.count)
      source.advance(piece.count)
    }
  }

  // MARK: The rest

  private static func simple(_ c: KV.Connection, _ name: Bytes, _ arguments: Bytes) {
    var rest = arguments
    if name.equals("delete") {
      guard let key = rest.next(separator: 0x20) else { return KV.reply.text("ERROR\r\n") }
      let silent = isSilent(rest)
      if !silent, !rest.isEmpty, !rest.equals("0") {
        return KV.reply.text("CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n")
      }
      if let item = Store.find(key) {
        Store.unlink(item)
        if !silent { KV.reply.text("DELETED\r\n") }
      } else if !silent {
        KV.reply.text("NOT_FOUND\r\n")
      }
    } else if name.equals("incr") || name.equals("decr") {
      count(&rest, up: name.equals("incr"))
    } else if name.equals("touch") {
      guard let key = rest.next(separator: 0x20), let expiry = rest.next(separator: 0x20)?.signedDecimal() else {
        return KV.reply.text("ERROR\r\n")
      }
      let item = Store.find(key)
      item?.pointee.expiry = deadline(expiry)
      if !isSilent(rest) { KV.reply.text(item == nil ? "NOT_FOUND\r\n" : "TOUCHED\r\n") }
    } else if name.equals("version") {
      KV.reply.text("VERSION 1.6.0-lab\r\n")
    } else if name.equals("flush_all") {
      Store.removeAll()
      if !isSilent(rest) { KV.reply.text("OK\r\n") }
    } else if name.equals("verbosity"), !rest.isEmpty {
      if !isSilent(rest) { KV.reply.text("OK\r\n") }
    } else if name.equals("stats") {
      statistics()
    } else if name.equals("quit") {
      c.pointee.closing = true
      c.pointee.inputStart = c.pointee.inputEnd
    } else {
      KV.reply.text("ERROR\r\n")
    }
  }

  private static func isSilent(_ rest: Bytes) -> Bool {
    var words = rest
    while let word = words.next(separator: 0x20) {
      if word.equals("noreply") { return true }
    }
    return false
  }

  private static func count(_ arguments: inout Bytes, up: Bool) {
    guard let key = arguments.next(separator: 0x20) else { return KV.reply.text("ERROR\r\n") }
    guard let delta = arguments.next(separator: 0x20)?.decimal() else {
      return KV.reply.text("CLIENT_ERROR invalid numeric delta argument\r\n")
    }
    let silent = isSilent(arguments)
    guard let item = Store.find(key) else {
      if !silent { KV.reply.text("NOT_FOUND\r\n") }
      return
    }
    let piece = ValueCursor(item).piece
    guard let old = Bytes(start: UnsafePointer(piece.start), count: Int(item.pointee.valueLength)).decimal() else {
      return KV.reply.text("CLIENT_ERROR cannot increment or decrement non-numeric value\r\n")
    }
    let new = up ? old &+ delta : old > delta ? old - delta : 0
    guard Numbers.replace(item, with: Int64(bitPattern: new), unsigned: true) else {
      return KV.reply.text("SERVER_ERROR out of memory storing object\r\n")
    }
    if !silent {
      KV.reply.decimal(new)
      KV.reply.text("\r\n")
    }
  }

  private static func statistics() {
    statistic("uptime", Clock.now / 1_000_000_000)
    statistic("curr_connections", UInt64(KV.open))
    statistic("total_connections", KV.total)
    statistic("rejected_connections", KV.refused)
    statistic("curr_items", Store.count)
    statistic("bytes", Store.bytes)
    statistic("limit_maxbytes", UInt64(Pages.count * Page.size))
    statistic("evictions", Pages.evictions)
    statistic("frames_in", Interface.framesIn)
    statistic("frames_out", Interface.framesOut)
    statistic("frames_dropped", Interface.framesDropped)
    statistic("merged_in", Interface.mergedIn)
    statistic("merged_out", Interface.mergedOut)
    statistic("interrupts", Interrupts.count(cpu: 0))
    KV.reply.text("END\r\n")
  }

  private static func statistic(_ name: StaticString, _ value: UInt64) {
    KV.reply.text("STAT ")
    KV.reply.text(name)
    KV.reply.byte(0x20)
    KV.reply.decimal(value)
    KV.reply.text("\r\n")
  }
}

/// Values that are decimal numbers.
enum Numbers {
  /// Stores a new item with the old one's key, flags and expiry.
  static func replace(_ item: UnsafeMutablePointer<Item>, with number: Int64, unsigned: Bool) -> Bool {
    var digits: InlineArray<24, UInt8> = .init(repeating: 0)
    return withUnsafeMutablePointer(to: &digits) {
      $0.withMemoryRebound(to: UInt8.self, capacity: 24) { text in
        var writer = ByteWriter(text, capacity: 24)
        if unsigned { writer.decimal(UInt64(bitPattern: number)) } else { writer.signed(number) }
        Store.retain(item)  // its key is still needed, whatever is evicted
        defer { Store.release(item) }
        guard let new = Store.make(Store.key(item), valueLength: writer.count) else { return false }
        new.pointee.clientFlags = item.pointee.clientFlags
        new.pointee.expiry = item.pointee.expiry
        var cursor = ValueCursor(new)
        cursor.fill(text, writer.count)
        Store.link(new)
        return true
      }
    }
  }
}
