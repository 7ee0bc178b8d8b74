import LabC

/// The Redis protocol (RESP 2), as far as redis-cli and redis-benchmark and the commands below need it.
enum Redis {
  /// Arguments of the command at hand; every argument takes at least 6 bytes of the input buffer.
  nonisolated(unsafe) private static var arguments = UnsafeMutablePointer<Bytes>.unset
  nonisolated(unsafe) private static var count = 0
  private static let mostArguments = KVConnection.inputSize / 2

  // MARK: Parsing

  /// Handles the next command, if there is a whole one.
  static func command(_ c: KV.Connection) -> Bool {
    if arguments.isUnset { arguments = Arena.takeZeroed(Bytes.self, count: mostArguments) }
    let all = Bytes(
      start: UnsafePointer(c.pointee.input + c.pointee.inputStart), count: c.pointee.inputEnd - c.pointee.inputStart)
    guard all.count > 0 else { return false }
    return all[0] == 0x2a ? arrayCommand(c, all) : inlineCommand(c, all)
  }

  private static func inlineCommand(_ c: KV.Connection, _ all: Bytes) -> Bool {
    guard let end = all.firstIndex(of: 0x0a) else { return incomplete(c) }
    var line = Bytes(start: all.start, count: end > 0 && all[end - 1] == 0x0d ? end - 1 : end)
    count = 0
    let lineCount = line.count
    var afterName = 0
    while count < mostArguments, let word = line.next(separator: 0x20) {
      arguments[count] = word
      count += 1
      if count == 1 { afterName = lineCount - line.count }
    }
    if count > 1, arguments[0].equalsIgnoringCase("mget") {
      beginSeveral(c, .tokens, at: c.pointee.inputStart + afterName, end: c.pointee.inputStart + lineCount)
      return true
    }
    c.pointee.inputStart += end + 1
    if count > 0 { execute(c) }
    return true
  }

  private static func arrayCommand(_ c: KV.Connection, _ all: Bytes) -> Bool {
    var rest = all.from(1)
    guard let length = number(&rest) else { return all.count > 32 ? violation(c) : incomplete(c) }
    guard length >= 0, length <= 1 << 20 else { return violation(c) }
    count = 0
    var keysAt = 0
    for index in 0..<Int(length) {
      if rest.isEmpty { return incomplete(c) }
      guard rest[0] == 0x24 else { return violation(c) }
      var header = rest.from(1)
      guard let size = number(&header) else { return rest.count > 32 ? violation(c) : incomplete(c) }
      guard size >= 0, size <= 512 << 20 else { return violation(c) }
      if header.count < Int(size) + 2 {
        if index == 2, length == 3, count == 2, size >= 1024, arguments[0].equalsIgnoringCase("set") {
          beginSet(c, size: UInt64(size), consumed: all.count - header.count)
          return true
        }
        return incomplete(c)
      }
      guard index < mostArguments else { return violation(c) }
      arguments[index] = Bytes(start: header.start, count: Int(size))
      count += 1
      rest = header.from(Int(size) + 2)
      if index == 0 { keysAt = all.count - rest.count }
    }
    let consumed = all.count - rest.count
    if count > 1, arguments[0].equalsIgnoringCase("mget") {
      beginSeveral(c, .bulk, at: c.pointee.inputStart + keysAt, end: c.pointee.inputStart + consumed)
      return true
    }
    c.pointee.inputStart += consumed
    if count > 0 { execute(c) }
    return true
  }

  /// A decimal number up to the end of the line; nil if the line is not whole (or no number).
  private static func number(_ rest: inout Bytes) -> Int64? {
    guard let end = rest.firstIndex(of: 0x0a), end > 0, rest[end - 1] == 0x0d,
      let value = Bytes(start: rest.start, count: end - 1).signedDecimal()
    else { return nil }
    rest = rest.from(end + 1)
    return value
  }

  /// One bulk string of a command that is known to be whole.
  static func bulk(_ rest: inout Bytes) -> Bytes? {
    guard rest.count > 0 else { return nil }
    rest = rest.from(1)
    guard let size = number(&rest), size >= 0, rest.count >= Int(size) + 2 else { return nil }
    let bytes = Bytes(start: rest.start, count: Int(size))
    rest = rest.from(Int(size) + 2)
    return bytes
  }

  private static func incomplete(_ c: KV.Connection) -> Bool {
    if KV.isInputFull(c) {
      error("Protocol error: command too long")
      stop(c)
    }
    return false
  }

  private static func violation(_ c: KV.Connection) -> Bool {
    error("Protocol error")
    stop(c)
    return false
  }

  private static func stop(_ c: KV.Connection) {
    c.pointee.closing = true
    c.pointee.inputStart = c.pointee.inputEnd
  }

  // MARK: Several keys

  private static func beginSeveral(_ c: KV.Connection, _ kind: KVConnection.Several, at: Int, end: Int) {
    c.pointee.several = kind
    c.pointee.severalAt = at
    c.pointee.severalEnd = end
    c.pointee.severalLeft = UInt64(count - 1)
    c.pointee.severalWithCAS = false
    let start = KV.reply.count
    KV.reply.byte(0x2a)
    KV.reply.decimal(UInt64(count - 1))
    KV.reply.text("\r\n")
    KV.tellConstant(c, from: start)
  }

  static func value(_ c: KV.Connection, _ key: Bytes) {
    let start = KV.reply.count
    guard key.count <= Store.largestKey, let item = Store.find(key) else {
      KV.reply.text("$-1\r\n")
      if let bucket = Store.emptyBucket(key) { KV.tellConstant(c, from: start, emptyBucket: bucket) }
      return
    }
    KV.reply.byte(0x24)
    KV.reply.decimal(UInt64(item.pointee.valueLength))
    KV.reply.text("\r\n")
    KV.emitValue(c, item, from: start)
  }

  // MARK: SET of a value too long for the input buffer

  private static func beginSet(_ c: KV.Connection, size: UInt64, consumed: Int) {
    let key = arguments[1]
    c.pointee.inputStart += consumed
    guard key.count <= Store.largestKey, size <= UInt64(Store.largestValue) else {
      error("key or value too long")
      c.pointee.swallow = size + 2
      return
    }
    guard let item = Store.make(key, valueLength: Int(size)) else {
      error("out of memory")
      c.pointee.swallow = size + 2
      return
    }
    c.pointee.storing = StoreRequest()
    c.pointee.storing.lineEnd = 2
    c.pointee.receiving = ValueCursor(item)
  }

  static func store(_ c: KV.Connection, _ item: UnsafeMutablePointer<Item>) {
    if c.pointee.storing.badLineEnd {
      Store.release(item)
      _ = violation(c)
      return
    }
    Store.link(item)
    KV.reply.text("+OK\r\n")
  }

  // MARK: Commands

  private static func execute(_ c: KV.Connection) {
    let name = arguments[0]
    if name.equalsIgnoringCase("get") {
      count == 2 ? value(c, arguments[1]) : wrongCount()
    } else if name.equalsIgnoringCase("set") {
      set()
    } else if name.equalsIgnoringCase("ping") {
      count == 1 ? KV.reply.text("+PONG\r\n") : string(arguments[1])
    } else if name.equalsIgnoringCase("incr") {
      count == 2 ? add(1) : wrongCount()
    } else if name.equalsIgnoringCase("decr") {
      count == 2 ? add(-1) : wrongCount()
    } else if name.equalsIgnoringCase("incrby") {
      if count == 3, let by = arguments[2].signedDecimal() { add(by) } else { notAnInteger() }
    } else if name.equalsIgnoringCase("del") || name.equalsIgnoringCase("unlink") {
      integer(countKeys { Store.unlink($0) })
    } else if name.equalsIgnoringCase("exists") {
      integer(countKeys { _ in })
    } else if name.equalsIgnoringCase("mset") {
      setSeveral()
    } else if name.equalsIgnoringCase("strlen") {
      count == 2 ? integer(Store.find(arguments[1]).map { Int64($0.pointee.valueLength) } ?? 0) : wrongCount()
    } else if name.equalsIgnoringCase("echo") {
      count == 2 ? string(arguments[1]) : wrongCount()
    } else if name.equalsIgnoringCase("dbsize") {
      integer(Int64(Store.count))
    } else {
      administration(c, name)
    }
  }

  private static func administration(_ c: KV.Connection, _ name: Bytes) {
    if name.equalsIgnoringCase("select") || name.equalsIgnoringCase("client") {
      KV.reply.text("+OK\r\n")
    } else if name.equalsIgnoringCase("flushall") || name.equalsIgnoringCase("flushdb") {
      Store.removeAll()
      KV.reply.text("+OK\r\n")
    } else if name.equalsIgnoringCase("config") {
      configuration()
    } else if name.equalsIgnoringCase("command") {
      KV.reply.text("*0\r\n")
    } else if name.equalsIgnoringCase("info") {
      information()
    } else if name.equalsIgnoringCase("debug") {
      // A false promise, for tests of what becomes of it: it depends on the time, which differs between two guests.
      let start = KV.reply.count
      integer(Int64(truncatingIfNeeded: cpu_tsc() >> 1))
      KV.tellConstant(c, from: start)
    } else if name.equalsIgnoringCase("quit") {
      KV.reply.text("+OK\r\n")
      stop(c)
    } else {
      error("unknown command")
    }
  }

  /// `SET key value [NX | XX] [EX seconds | PX milliseconds]`
  private static func set() {
    guard count >= 3 else { return wrongCount() }
    var expiry: UInt64 = 0
    var i = 3
    while i < count {
      let exists = Store.find(arguments[1]) != nil
      if arguments[i].equalsIgnoringCase("nx") {
        if exists { return KV.reply.text("$-1\r\n") }
      } else if arguments[i].equalsIgnoringCase("xx") {
        if !exists { return KV.reply.text("$-1\r\n") }
      } else if i + 1 < count, let n = arguments[i + 1].decimal(), n > 0, n < 1 << 32 {
        if arguments[i].equalsIgnoringCase("ex") {
          expiry = Clock.now + n * 1_000_000_000
        } else if arguments[i].equalsIgnoringCase("px") {
          expiry = Clock.now + n * 1_000_000
        } else {
          return error("syntax error")
        }
        i += 1
      } else {
        return error("syntax error")
      }
      i += 1
    }
    if put(arguments[1], arguments[2], expiry) { KV.reply.text("+OK\r\n") }
  }

  private static func setSeveral() {
    guard count >= 3, count % 2 == 1 else { return wrongCount() }
    var i = 1
    while i < count {
      guard put(arguments[i], arguments[i + 1], 0) else { return }
      i += 2
    }
    KV.reply.text("+OK\r\n")
  }

  private static func put(_ key: Bytes, _ value: Bytes, _ expiry: UInt64) -> Bool {
    guard key.count <= Store.largestKey else {
      error("key too long")
      return false
    }
    guard let item = Store.make(key, valueLength: value.count) else {
      error("out of memory")
      return false
    }
    item.pointee.expiry = expiry
    var cursor = ValueCursor(item)
    cursor.fill(value.start, value.count)
    Store.link(item)
    return true
  }

  private static func add(_ amount: Int64) {
    guard let item = Store.find(arguments[1]) else {
      var digits: InlineArray<24, UInt8> = .init(repeating: 0)
      withUnsafeMutablePointer(to: &digits) {
        $0.withMemoryRebound(to: UInt8.self, capacity: 24) {
          var writer = ByteWriter($0, capacity: 24)
          writer.signed(amount)
          if put(arguments[1], Bytes(start: UnsafePointer($0), count: writer.count), 0) { integer(amount) }
        }
      }
      return
    }
    let piece = ValueCursor(item).piece
    guard item.pointee.valueLength < 24,
      let old = Bytes(start: UnsafePointer(piece.start), count: Int(item.pointee.valueLength)).signedDecimal()
    else { return notAnInteger() }
    let (new, overflow) = old.addingReportingOverflow(amount)
    if overflow { return error("increment or decrement would overflow") }
    if Numbers.replace(item, with: new, unsigned: false) { integer(new) } else { error("out of memory") }
  }

  private static func countKeys(_ each: (UnsafeMutablePointer<Item>) -> Void) -> Int64 {
    var found: Int64 = 0
    for i in 1..<max(count, 1) {
      if let item = Store.find(arguments[i]) {
        found += 1
        each(item)
      }
    }
    return found
  }

  private static func configuration() {
    guard count >= 3, arguments[1].equalsIgnoringCase("get") else { return KV.reply.text("+OK\r\n") }
    KV.reply.text("*2\r\n")
    string(arguments[2])
    if arguments[2].equalsIgnoringCase("save") {
      KV.reply.text("$0\r\n\r\n")
    } else {
      KV.reply.text("$2\r\nno\r\n")
    }
  }

  private static func information() {
    var storage: InlineArray<512, UInt8> = .init(repeating: 0)
    withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: UInt8.self, capacity: 512) {
        var text = ByteWriter($0, capacity: 512)
        text.text("# Server\r\nredis_version:6.0.0\r\nredis_mode:standalone\r\nos:lab\r\nuptime_in_seconds:")
        text.decimal(Clock.now / 1_000_000_000)
        text.text("\r\n# Clients\r\nconnected_clients:")
        text.decimal(UInt64(KV.open))
        text.text("\r\n# Memory\r\nmaxmemory:")
        text.decimal(UInt64(Pages.count * Page.size))
        text.text("\r\nused_memory:")
        text.decimal(Store.bytes)
        text.text("\r\n# Stats\r\nevicted_keys:")
        text.decimal(Pages.evictions)
        text.text("\r\n# Keyspace\r\ndb0:keys=")
        text.decimal(Store.count)
        text.text(",expires=0\r\n")
        string(Bytes(start: UnsafePointer($0), count: text.count))
      }
    }
  }

  // MARK: Replies

  private static func string(_ bytes: Bytes) {
    KV.reply.byte(0x24)
    KV.reply.decimal(UInt64(bytes.count))
    KV.reply.text("\r\n")
    KV.reply.bytes(bytes)
    KV.reply.text("\r\n")
  }

  private static func integer(_ value: Int64) {
    KV.reply.byte(0x3a)
    KV.reply.signed(value)
    KV.reply.text("\r\n")
  }

  private static func error(_ text: StaticString) {
    KV.reply.text("-ERR ")
    KV.reply.text(text)
    KV.reply.text("\r\n")
  }

  private static func wrongCount() { error("wrong number of arguments") }
  private static func notAnInteger() { error("value is not an integer or out of range") }
}
