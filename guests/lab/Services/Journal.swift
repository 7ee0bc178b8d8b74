import LabC

/// TCP port 5002: blocks written to the disk at a client's word. `W block generation` writes a self-describing block of
/// 4096 bytes, flushes, and only then answers `OK block generation`; `ERR block generation` when the device failed. One
/// request at a time on a connection.
struct JournalConnection {
  /// `leaving`: the client has gone while the device was at work.
  enum State: UInt8 { case free, request, writing, flushing, leaving }

  var pcb: UnsafeMutablePointer<tcp_pcb>?
  var state: State
  var line: InlineArray<48, UInt8>
  var lineCount: Int
  var block: UInt64
  var generation: UInt64
}

enum Journal {
  private typealias Connection = UnsafeMutablePointer<JournalConnection>

  private static let limit = 16
  private static let blockSize = 4096
  nonisolated(unsafe) private static var connections = Connection.unset
  nonisolated(unsafe) private static var data = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var blocks: UInt64 = 0
  nonisolated(unsafe) private static var isServing = false

  /// Before the store takes the rest of memory.
  static func start() {
    guard BlockDevice.setUp(slots: limit) else {
      Console.line("journal: no block device")
      return
    }
    blocks = BlockDevice.sectors * BlockRequestHeader.sectorSize / UInt64(blockSize)
    connections = Arena.takeZeroed(JournalConnection.self, count: limit)
    data = Arena.takeZeroed(blockSize * limit, alignment: 4096)
    isServing = true
    listen(on: 5002) { _, pcb, error in
      guard let pcb, error == ok else { return err_t(ERR_VAL.rawValue) }
      return Journal.accept(pcb)
    }
  }

  private static func accept(_ pcb: UnsafeMutablePointer<tcp_pcb>) -> err_t {
    for i in 0..<limit where connections[i].state == .free {
      let c = connections + i
      c.pointee.pcb = pcb
      c.pointee.state = .request
      c.pointee.lineCount = 0
      tcp_no_delay(pcb)
      tcp_arg(pcb, c)
      tcp_recv(pcb) { c, _, data, _ in Journal.received(c!.assumingMemoryBound(to: JournalConnection.self), data) }
      tcp_err(pcb) { c, _ in
        if let c { Journal.forget(c.assumingMemoryBound(to: JournalConnection.self)) }
      }
      return ok
    }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }

  private static func received(_ c: Connection, _ data: UnsafeMutablePointer<pbuf>?) -> err_t {
    guard let pcb = c.pointee.pcb else { return ok }
    guard let data else { return close(c, pcb) }
    var piece: UnsafeMutablePointer<pbuf>? = data
    while let p = piece {
      let bytes = p.pointee.payload.assumingMemoryBound(to: UInt8.self)
      for i in 0..<Int(p.pointee.len) where c.pointee.lineCount < 48 {
        c.pointee.line[c.pointee.lineCount] = bytes[i]
        c.pointee.lineCount += 1
      }
      piece = p.pointee.next
    }
    tcp_recved(pcb, data.pointee.tot_len)
    pbuf_free(data)
    guard c.pointee.state == .request, c.pointee.lineCount > 0 else { return ok }
    guard c.pointee.line[c.pointee.lineCount - 1] == 0x0a else {
      return c.pointee.lineCount < 48 ? ok : close(c, pcb)
    }
    return begin(c) ? ok : close(c, pcb)
  }

  private static func begin(_ c: Connection) -> Bool {
    let isRequest = withUnsafeMutablePointer(to: &c.pointee.line) {
      $0.withMemoryRebound(to: UInt8.self, capacity: 48) {
        var line = Bytes(start: UnsafePointer($0), count: c.pointee.lineCount - 1)
        guard let verb = line.next(separator: 0x20), verb.equals("W"),
          let block = line.next(separator: 0x20)?.decimal(), block < blocks,
          let generation = line.next(separator: 0x20)?.decimal()
        else { return false }
        c.pointee.block = block
        c.pointee.generation = generation
        return true
      }
    }
    guard isRequest else { return false }
    c.pointee.lineCount = 0
    let slot = c - connections
    let buffer = data + slot * blockSize
    SelfDescribing.fill(buffer, blockSize, c.pointee.block, c.pointee.generation)
    c.pointee.state = .writing
    let sector = c.pointee.block * UInt64(blockSize) / BlockRequestHeader.sectorSize
    BlockDevice.submit(slot: slot, BlockRequestType.write, sector: sector, buffer, blockSize)
    BlockDevice.queue.notifyIfNeeded()
    return true
  }

  // MARK: Main loop

  static func poll() -> Bool {
    guard isServing else { return false }
    var worked = false
    while let (slot, status) = BlockDevice.take() {
      worked = true
      finish(connections + slot, slot, isGood: status == BlockStatus.ok)
    }
    if worked { BlockDevice.queue.notifyIfNeeded() }
    return worked
  }

  private static func finish(_ c: Connection, _ slot: Int, isGood: Bool) {
    guard c.pointee.state != .leaving else {
      c.pointee.state = .free
      return
    }
    if c.pointee.state == .writing, isGood, BlockDevice.canFlush {
      c.pointee.state = .flushing
      BlockDevice.submit(slot: slot, BlockRequestType.flush, sector: 0, data, 0)
      return
    }
    c.pointee.state = .request
    answer(c, isGood: isGood)
  }

  private static func answer(_ c: Connection, isGood: Bool) {
    guard let pcb = c.pointee.pcb else { return }
    var storage: InlineArray<64, UInt8> = .init(repeating: 0)
    withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: UInt8.self, capacity: 64) {
        var text = ByteWriter($0, capacity: 64)
        text.text(isGood ? "OK " : "ERR ")
        text.decimal(c.pointee.block)
        text.text(" ")
        text.decimal(c.pointee.generation)
        text.text("\n")
        _ = tcp_write(pcb, text.base, UInt16(text.count), UInt8(TCP_WRITE_FLAG_COPY))
      }
    }
    tcp_output(pcb)
  }

  static func arm() -> Bool { !isServing || BlockDevice.queue.arm() }

  static func disarm() {
    if isServing, BlockDevice.queue.disarm() { BlockDevice.transport.acknowledgeInterrupt() }
  }

  // MARK: Ends

  private static func forget(_ c: Connection) {
    c.pointee.pcb = nil
    c.pointee.state = c.pointee.state == .request ? .free : .leaving
  }

  private static func close(_ c: Connection, _ pcb: UnsafeMutablePointer<tcp_pcb>) -> err_t {
    tcp_arg(pcb, nil)
    tcp_recv(pcb, nil)
    tcp_err(pcb, nil)
    forget(c)
    if tcp_close(pcb) == ok { return ok }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }
}
