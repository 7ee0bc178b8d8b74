import LabC

/// Load on virtio-blk, one result line: `disk=rand-read|rand-write|seq-read|seq-write|verify,bs=4096,qd=32,count=N` or
/// `seconds=S`. `verify` writes self-describing blocks, flushes, reads them back (`phase=write` and `phase=read` do one
/// half, for what was written before a failover or restore).
enum Disk {
  enum Mode { case randomRead, randomWrite, sequentialRead, sequentialWrite, verify }
  enum Phase { case idle, load, write, flush, read, done }

  nonisolated(unsafe) private static var mode = Mode.randomRead
  nonisolated(unsafe) private static var phase = Phase.idle
  nonisolated(unsafe) private static var modeName = Bytes(start: emptyBytes, count: 0)
  nonisolated(unsafe) private static var blockSize = 4096
  nonisolated(unsafe) private static var depth = 32
  nonisolated(unsafe) private static var count: UInt64 = 0
  nonisolated(unsafe) private static var generation: UInt64 = 0
  nonisolated(unsafe) private static var seconds: UInt64 = 5
  nonisolated(unsafe) private static var onlyWrite = false
  nonisolated(unsafe) private static var onlyRead = false
  nonisolated(unsafe) private static var isReady = false
  nonisolated(unsafe) private static var blocks: UInt64 = 0
  nonisolated(unsafe) private static var random = Random(seed: 1)

  nonisolated(unsafe) private static var data = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var startedAt = UnsafeMutablePointer<UInt64>.unset
  nonisolated(unsafe) private static var blockOf = UnsafeMutablePointer<UInt64>.unset
  nonisolated(unsafe) private static var freeSlots = UnsafeMutablePointer<UInt16>.unset
  nonisolated(unsafe) private static var freeCount = 0
  nonisolated(unsafe) private static var latencies = UnsafeMutablePointer<UInt32>.unset

  nonisolated(unsafe) private static var begin: UInt64 = 0
  nonisolated(unsafe) private static var end: UInt64 = 0
  nonisolated(unsafe) private static var issued: UInt64 = 0
  /// Blocks read and written, in all phases.
  nonisolated(unsafe) private static var moved: UInt64 = 0
  nonisolated(unsafe) private static var errors: UInt64 = 0
  nonisolated(unsafe) private static var mismatches: UInt64 = 0

  static var isActive: Bool { phase != .idle && phase != .done }

  /// Reads the options, sets the device up and takes memory for the buffers. Before the store takes the rest.
  static func prepare() {
    guard let option = CommandLine.value("disk"), readMode(option) else {
      Console.line("disk: disk=rand-read|rand-write|seq-read|seq-write|verify[,bs=…][,qd=…][,count=…|seconds=…]")
      return
    }
    blockSize = Int(min(max(CommandLine.part(option, "bs") ?? 4096, 512), 1 << 20)) & ~511
    depth = Int(min(max(CommandLine.part(option, "qd") ?? 32, 1), 85))  // three descriptors each
    guard setUp() else { return }
    count = CommandLine.part(option, "count") ?? (mode == .verify ? 1024 : UInt64.max)
    if mode == .verify { count = min(count, blocks) }
    seconds = CommandLine.part(option, "seconds") ?? (count == UInt64.max ? 5 : 1 << 32)
    generation = CommandLine.part(option, "generation") ?? 1
    random = Random(seed: CommandLine.number("seed") ?? systemRandom.next())
    let half = CommandLine.partText(option, "phase")
    onlyWrite = half?.equals("write") ?? false
    onlyRead = half?.equals("read") ?? false
    isReady = true
  }

  private static func readMode(_ option: Bytes) -> Bool {
    var rest = option
    modeName = rest.next(separator: 0x2c) ?? option
    if modeName.equals("rand-read") {
      mode = .randomRead
    } else if modeName.equals("rand-write") {
      mode = .randomWrite
    } else if modeName.equals("seq-read") {
      mode = .sequentialRead
    } else if modeName.equals("seq-write") {
      mode = .sequentialWrite
    } else if modeName.equals("verify") {
      mode = .verify
    } else {
      return false
    }
    return true
  }

  private static func setUp() -> Bool {
    guard BlockDevice.setUp(slots: 256) else {
      Console.line("disk: no block device")
      return false
    }
    blocks = BlockDevice.sectors * BlockRequestHeader.sectorSize / UInt64(blockSize)
    guard blocks > 0 else {
      Console.line("disk: smaller than one block")
      return false
    }
    data = Arena.takeZeroed(blockSize * depth, alignment: 4096)
    startedAt = Arena.takeZeroed(UInt64.self, count: 256)
    blockOf = Arena.takeZeroed(UInt64.self, count: 256)
    freeSlots = Arena.takeZeroed(UInt16.self, count: 256)
    latencies = Arena.takeZeroed(UInt32.self, count: LatencyBuckets.count)
    for slot in 0..<depth { freeSlots[slot] = UInt16(slot) }
    freeCount = depth
    return true
  }

  static func start() {
    guard isReady else { return }
    begin = Clock.now
    end = begin + seconds * 1_000_000_000
    errors = 0
    mismatches = 0
    moved = 0
    enter(mode != .verify ? .load : onlyRead ? .read : .write)
  }

  private static func enter(_ next: Phase) {
    phase = next
    issued = 0
  }

  // MARK: Main loop

  static func poll() -> Bool {
    guard isActive else { return false }
    var worked = false
    while let (slot, status) = BlockDevice.take() {
      worked = true
      finish(slot, status)
    }
    while freeCount > 0, wantsMore {
      worked = true
      freeCount -= 1
      issue(Int(freeSlots[freeCount]))
    }
    BlockDevice.queue.notifyIfNeeded()
    if freeCount == depth, !wantsMore {
      advance()
      worked = true
    }
    return worked
  }

  private static var wantsMore: Bool {
    if phase == .flush { return issued == 0 }
    return issued < count && (mode == .verify || issued & 31 != 0 || Clock.now < end)
  }

  private static func issue(_ slot: Int) {
    let block: UInt64
    switch mode {
    case .randomRead, .randomWrite: block = random.next(below: blocks)
    case .sequentialRead, .sequentialWrite, .verify: block = issued % blocks
    }
    issued += 1
    blockOf[slot] = block
    startedAt[slot] = Clock.now
    let buffer = data + slot * blockSize
    let type: UInt32
    switch phase {
    case .flush: type = BlockRequestType.flush
    case .write: type = BlockRequestType.write
    case .load where mode == .randomWrite || mode == .sequentialWrite: type = BlockRequestType.write
    default: type = BlockRequestType.read
    }
    if type == BlockRequestType.write { SelfDescribing.fill(buffer, blockSize, block, generation) }
    let sector = block * UInt64(blockSize) / BlockRequestHeader.sectorSize
    BlockDevice.submit(
      slot: slot, type, sector: type == BlockRequestType.flush ? 0 : sector, buffer,
      type == BlockRequestType.flush ? 0 : blockSize)
  }

  private static func finish(_ slot: Int, _ status: UInt8) {
    freeSlots[freeCount] = UInt16(slot)
    freeCount += 1
    if phase != .flush { moved += 1 }
    latencies[LatencyBuckets.index(Clock.now - startedAt[slot])] += 1
    if status != BlockStatus.ok {
      errors += 1
    } else if phase == .read,
      !SelfDescribing.check(data + slot * blockSize, blockSize, blockOf[slot], generation)
    {
      mismatches += 1
    }
  }

  private static func advance() {
    switch phase {
    case .write where BlockDevice.canFlush: enter(.flush)
    case .write, .flush: if onlyWrite { report() } else { enter(.read) }
    default: report()
    }
  }

  static func arm() -> Bool { !isActive || BlockDevice.queue.arm() }

  static func disarm() {
    if isActive, BlockDevice.queue.disarm() { BlockDevice.transport.acknowledgeInterrupt() }
  }

  private static func report() {
    phase = .done
    let nanoseconds = max(Clock.now - begin, 1)
    let total = moved
    Console.line {
      $0.text("disk: ")
      $0.bytes(modeName)
      $0.text(" bs=")
      $0.decimal(UInt64(blockSize))
      $0.text(" qd=")
      $0.decimal(UInt64(depth))
      $0.text(" requests=")
      $0.decimal(total)
      $0.text(" iops=")
      $0.decimal(total * 1_000_000_000 / nanoseconds)
      $0.text(" MBps=")
      $0.fixed(total * UInt64(blockSize) * 1000 / max(nanoseconds / 10, 1), places: 1)
      $0.text(" p50_us=")
      $0.decimal(LatencyBuckets.quantile(latencies, 500) / 1000)
      $0.text(" p99_us=")
      $0.decimal(LatencyBuckets.quantile(latencies, 990) / 1000)
      $0.text(" errors=")
      $0.decimal(errors)
      if mode == .verify {
        $0.text(" mismatches=")
        $0.decimal(mismatches)
        $0.text(mismatches == 0 && errors == 0 ? " verified" : " FAILED")
      }
    }
    for i in 0..<LatencyBuckets.count { latencies[i] = 0 }
  }
}

/// Blocks that say what they are: 64-byte records of magic, block number, generation, place in the block and a checksum,
/// so that a torn, stale or misplaced write shows.
enum SelfDescribing {
  private static let magic: UInt64 = 0x4b43_4f4c_4242_414c  // "LABBLOCK"

  private static func sum(_ block: UInt64, _ generation: UInt64, _ place: UInt64) -> UInt64 {
    var h = magic ^ block &* 0x9e37_79b9_7f4a_7c15
    h = (h ^ generation) &* 0xbf58_476d_1ce4_e5b9
    h = (h ^ place ^ (h >> 29)) &* 0x94d0_49bb_1331_11eb
    return h ^ (h >> 32)
  }

  static func fill(_ buffer: UnsafeMutableRawPointer, _ size: Int, _ block: UInt64, _ generation: UInt64) {
    let words = buffer.assumingMemoryBound(to: UInt64.self)
    for record in 0..<size / 64 {
      let at = words + record * 8
      at[0] = magic
      at[1] = block
      at[2] = generation
      at[3] = UInt64(record)
      let s = sum(block, generation, UInt64(record))
      at[4] = s
      at[5] = ~s
      at[6] = s &* 3
      at[7] = s &* 5
    }
  }

  static func check(_ buffer: UnsafeMutableRawPointer, _ size: Int, _ block: UInt64, _ generation: UInt64) -> Bool {
    let words = buffer.assumingMemoryBound(to: UInt64.self)
    for record in 0..<size / 64 {
      let at = words + record * 8
      let s = sum(block, generation, UInt64(record))
      guard at[0] == magic, at[1] == block, at[2] == generation, at[3] == UInt64(record), at[4] == s, at[5] == ~s,
        at[6] == s &* 3, at[7] == s &* 5
      else { return false }
    }
    return true
  }
}

/// A histogram of nanoseconds: 16 buckets a power of two, so within 7 %.
enum LatencyBuckets {
  static let count = 64 * 16

  static func index(_ value: UInt64) -> Int {
    if value < 16 { return Int(value) }
    let exponent = 63 - value.leadingZeroBitCount
    return (exponent - 3) * 16 + Int(value >> UInt64(exponent - 4) & 15)
  }

  private static func value(_ index: Int) -> UInt64 {
    if index < 16 { return UInt64(index) }
    return UInt64(16 + index % 16) << UInt64(index / 16 - 1)
  }

  /// The value below which `perMille` thousandths lie.
  static func quantile(_ buckets: UnsafePointer<UInt32>, _ perMille: UInt64) -> UInt64 {
    var total: UInt64 = 0
    for i in 0..<count { total += UInt64(buckets[i]) }
    let wanted = (total * perMille + 999) / 1000
    var seen: UInt64 = 0
    for i in 0..<count {
      seen += UInt64(buckets[i])
      if seen >= wanted { return value(i) }
    }
    return 0
  }
}
