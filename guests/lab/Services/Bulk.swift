import LabC

/// TCP port 5001, for throughput. `SEND n` answers n bytes of a pattern and closes; `RECV n` swallows n bytes and answers
/// `DONE n adler32=0x…`. Byte i of the pattern is (131·k + k/256) mod 256 with k = i mod 65536.
struct BulkConnection {
  enum State: UInt8 { case free, request, sending, receiving, answered }

  var pcb: UnsafeMutablePointer<tcp_pcb>?
  var state: State
  var request: InlineArray<32, UInt8>
  var requestCount: Int
  var length: UInt64
  var left: UInt64
  var sumA: UInt32
  var sumB: UInt32
}

enum Bulk {
  typealias Connection = UnsafeMutablePointer<BulkConnection>

  private static let period = 65536
  private static let limit = 64
  nonisolated(unsafe) private static var connections = Connection.unset
  /// One period and enough of the next that a piece of any offset lies together.
  nonisolated(unsafe) private static var pattern = UnsafeMutablePointer<UInt8>.unset

  static func start() {
    connections = Arena.takeZeroed(BulkConnection.self, count: limit)
    pattern = Arena.take(period, alignment: 4096).assumingMemoryBound(to: UInt8.self)
    for k in 0..<period { pattern[k] = UInt8(truncatingIfNeeded: 131 * k + k >> 8) }
    listen(on: 5001) { _, pcb, error in
      guard let pcb, error == ok else { return err_t(ERR_VAL.rawValue) }
      return Bulk.accept(pcb)
    }
  }

  private static func accept(_ pcb: UnsafeMutablePointer<tcp_pcb>) -> err_t {
    for i in 0..<limit where connections[i].state == .free {
      let c = connections + i
      c.pointee.pcb = pcb
      c.pointee.state = .request
      c.pointee.requestCount = 0
      tcp_arg(pcb, c)
      tcp_recv(pcb) { c, _, data, _ in Bulk.received(c!.assumingMemoryBound(to: BulkConnection.self), data) }
      tcp_sent(pcb) { c, _, _ in Bulk.pump(c!.assumingMemoryBound(to: BulkConnection.self)) }
      tcp_poll(pcb, { c, _ in Bulk.pump(c!.assumingMemoryBound(to: BulkConnection.self)) }, 2)
      tcp_err(pcb) { c, _ in c?.assumingMemoryBound(to: BulkConnection.self).pointee.state = .free }
      return ok
    }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }

  private static func received(_ c: Connection, _ data: UnsafeMutablePointer<pbuf>?) -> err_t {
    guard let data, let pcb = c.pointee.pcb else {
      return c.pointee.state == .sending ? ok : close(c)
    }
    var piece: UnsafeMutablePointer<pbuf>? = data
    while let p = piece {
      take(c, p.pointee.payload.assumingMemoryBound(to: UInt8.self), Int(p.pointee.len))
      piece = p.pointee.next
    }
    tcp_recved(pcb, data.pointee.tot_len)
    pbuf_free(data)
    return pump(c)
  }

  private static func take(_ c: Connection, _ bytes: UnsafePointer<UInt8>, _ count: Int) {
    var i = 0
    while i < count, c.pointee.state == .request {
      let byte = bytes[i]
      i += 1
      if byte == 0x0a {
        begin(c)
      } else if c.pointee.requestCount < 32 {
        c.pointee.request[c.pointee.requestCount] = byte
        c.pointee.requestCount += 1
      }
    }
    guard c.pointee.state == .receiving else { return }
    let n = Int(min(UInt64(count - i), c.pointee.left))
    checksum(c, bytes + i, n)
    c.pointee.left -= UInt64(n)
  }

  private static func begin(_ c: Connection) {
    withUnsafeMutablePointer(to: &c.pointee.request) {
      $0.withMemoryRebound(to: UInt8.self, capacity: 32) {
        var line = Bytes(start: UnsafePointer($0), count: c.pointee.requestCount)
        if line.count > 0, line[line.count - 1] == 0x0d { line.count -= 1 }
        let verb = line.next(separator: 0x20)
        let length = line.next(separator: 0x20)?.decimal()
        guard let verb, let length else {
          c.pointee.state = .answered
          return
        }
        c.pointee.length = length
        c.pointee.left = length
        c.pointee.sumA = 1
        c.pointee.sumB = 0
        c.pointee.state = verb.equals("SEND") ? .sending : verb.equals("RECV") ? .receiving : .answered
      }
    }
  }

  private static func checksum(_ c: Connection, _ bytes: UnsafePointer<UInt8>, _ count: Int) {
    var a = c.pointee.sumA
    var b = c.pointee.sumB
    for i in 0..<count {  // at most 64 KiB a time: b stays below 2^32 when reduced every 4 KiB
      a &+= UInt32(bytes[i])
      b &+= a
      if i & 4095 == 4095 {
        a %= 65521
        b %= 65521
      }
    }
    c.pointee.sumA = a % 65521
    c.pointee.sumB = b % 65521
  }

  private static func pump(_ c: Connection) -> err_t {
    guard let pcb = c.pointee.pcb else { return ok }
    switch c.pointee.state {
    case .sending:
      while c.pointee.left > 0 {
        let offset = Int((c.pointee.length - c.pointee.left) % UInt64(period))
        let n = min(min(period - offset, 0xffff), Int(min(c.pointee.left, UInt64(tcp_send_space(pcb)))))
        guard n > 0, tcp_write(pcb, pattern + offset, UInt16(n), UInt8(TCP_WRITE_FLAG_MORE)) == ok else { break }
        c.pointee.left -= UInt64(n)
      }
      tcp_output(pcb)
      return c.pointee.left == 0 ? close(c) : ok
    case .receiving where c.pointee.left == 0:
      c.pointee.state = .answered
      answer(c, pcb)
      return close(c)
    case .answered: return close(c)
    default: return ok
    }
  }

  private static func answer(_ c: Connection, _ pcb: UnsafeMutablePointer<tcp_pcb>) {
    var storage: InlineArray<64, UInt8> = .init(repeating: 0)
    withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: UInt8.self, capacity: 64) {
        var text = ByteWriter($0, capacity: 64)
        text.text("DONE ")
        text.decimal(c.pointee.length)
        text.text(" adler32=")
        text.hex(UInt64(c.pointee.sumB << 16 | c.pointee.sumA))
        text.text("\n")
        _ = tcp_write(pcb, text.base, UInt16(text.count), UInt8(TCP_WRITE_FLAG_COPY))
      }
    }
  }

  /// The pattern never changes, so frames still under way need nothing of us.
  private static func close(_ c: Connection) -> err_t {
    guard let pcb = c.pointee.pcb else { return ok }
    tcp_arg(pcb, nil)
    tcp_recv(pcb, nil)
    tcp_sent(pcb, nil)
    tcp_err(pcb, nil)
    tcp_poll(pcb, nil, 0)
    c.pointee.state = .free
    c.pointee.pcb = nil
    if tcp_close(pcb) == ok { return ok }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }
}
