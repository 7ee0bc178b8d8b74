internal import Devices
internal import GuestMemory
internal import Replication
internal import VirtioLayout

/// What a guest has said of its replies (``SourceRecord``), and whether that lets a frame go early. Device thread.
///
/// Everything here is the guest's word: records are copied once, checked, and bounded in number; one that makes no sense only
/// means that its reply is held.
struct ReplySources: ~Copyable {
  private struct Source {
    var address: UInt64
    var length: UInt32
    var offset: UInt32
  }

  private struct Record {
    var sequence: UInt32
    var length: UInt32
    var sources: InlineArray<12, Source>
    var count: Int
    /// What the card was handed is a source, too.
    var hasOwnBuffers: Bool
    var end: UInt32 { sequence &+ length }

    /// - Returns: how far a position of the stream lies in the record; nil outside.
    func offset(of position: UInt32) -> UInt32? {
      let offset = position &- sequence
      return offset < length ? offset : nil
    }
  }

  private static let perFlow = 256
  private static let mostRecords = 8192
  private static let mostFlows = 16384
  /// The longest range that determines an answer without being in it.
  private static let mostUncopied = 4096

  private let memory: GuestMemory
  private let registers: PairRegisters
  private let pages: SourcePages
  /// The guest is a secondary's.
  var isFollowing = false
  /// While it is, nothing is looked at, and no frame is taken for marked.
  var isIdle = false
  private var generation: UInt32?
  private var rings: [(address: UInt64, next: UInt64)] = []
  private var flows: [FlowKey: [Record]] = [:]
  private var count = 0
  private var scratch = [UInt8](repeating: 0, count: Self.mostUncopied)

  init(_ memory: GuestMemory, _ registers: PairRegisters, _ pages: SourcePages) {
    self.memory = memory
    self.registers = registers
    self.pages = pages
  }

  /// What is known of the memory that a frame is made of; nil when the guest has not marked all of it.
  /// - Parameters:
  ///   - frame: as the guest numbers it.
  ///   - bytes: the frame without its virtio-net header.
  ///   - buffers: where the guest has the frame, from `offset` on.
  mutating func standing(
    _ frame: Frame, _ bytes: UnsafeRawBufferPointer, _ buffers: GuestBuffers = GuestBuffers(), offset: UInt64 = 0
  ) -> Standing? {
    let place = offset + UInt64(frame.payload.lowerBound)
    return unsafe take(frame, bytes) { unsafe $0.check($1, frame.sequence, $2, buffers, place) }
  }

  /// Whether the guest names sources at all.
  var isUsed: Bool { !rings.isEmpty }

  /// The guest goes on from another state: what it said since is unsaid.
  mutating func restart() {
    rings = rings.map { ($0.address, 1) }
    forget()
  }

  /// What the guest has said by now is not looked at: it may be of connections whose names have been used again since.
  mutating func skip() {
    poll()
    forget()
  }

  private mutating func forget() {
    flows.removeAll(keepingCapacity: true)
    count = 0
  }

  /// Hands over what the guest has said of a frame's flow; what of that lies before the frame's end is not asked for again, unless
  /// it is sent again: then it is held.
  private mutating func take<R>(
    _ frame: Frame, _ bytes: UnsafeRawBufferPointer,
    _ body: (inout ReplySources, [Record], UnsafeRawBufferPointer) -> R?
  ) -> R? {
    guard frame.kind == .tcp else { return nil }
    // Of another connection of the same name.
    if frame.flags.contains(.syn) { forget(frame.key) }
    guard !isIdle, !frame.payload.isEmpty else { return nil }
    poll()
    guard !rings.isEmpty, frame.flags.isDisjoint(with: [.syn, .fin, .rst]), let place = flows.index(forKey: frame.key)
    else { return nil }
    // Taken out and put back: what is in two places would be copied to be changed.
    var records: [Record] = []
    swap(&records, &flows.values[place])
    let payload = unsafe UnsafeRawBufferPointer(
      rebasing: bytes[frame.payload.lowerBound..<frame.payload.upperBound])
    let result = unsafe body(&self, records, payload)
    let end = frame.sequence &+ UInt32(frame.payload.count)
    count -= records.count
    records.removeAll { Int32(bitPattern: $0.end &- end) <= 0 }
    count += records.count
    swap(&records, &flows.values[place])
    return result
  }

  private mutating func check(
    _ records: [Record], _ sequence: UInt32, _ payload: UnsafeRawBufferPointer, _ buffers: GuestBuffers, _ place: UInt64
  ) -> Standing? {
    var result = Standing.since(0)
    var done = 0
    while done < payload.count {
      let at = sequence &+ UInt32(done)
      // A record is large: looked at where it is.
      guard let known = records.firstIndex(where: { $0.offset(of: at) != nil }),
        let start = records[known].offset(of: at)
      else { return nil }
      let taken = min(Int(records[known].length - start), payload.count - done)
      let part = unsafe UnsafeRawBufferPointer(rebasing: payload[done..<done + taken])
      for index in 0..<records[known].count {
        result.join(unsafe check(records[known].sources[index], part, from: Int(start)))
      }
      if records[known].hasOwnBuffers {
        var at = 0
        let isThere = buffers.allSatisfy(offset: place + UInt64(done), count: UInt64(taken)) { piece in
          let bytes = unsafe UnsafeRawBufferPointer(rebasing: part[at..<at + Int(piece.count)])
          result.join(unsafe judge(bytes, at: piece.address))
          at += bytes.count
          return true
        }
        guard isThere else { return nil }
      }
      done += taken
    }
    return result
  }

  /// - Parameters:
  ///   - part: of the reply, from `start` on.
  private mutating func check(_ source: Source, _ part: UnsafeRawBufferPointer, from start: Int) -> Standing {
    if source.offset == SourceRecord.notCopied {
      let count = Int(source.length)
      guard count <= scratch.count else { return .unknown }
      var bytes: [UInt8] = []
      swap(&bytes, &scratch)
      defer { swap(&bytes, &scratch) }
      return unsafe bytes.withUnsafeMutableBytes { scratch in
        let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: scratch[..<count])
        guard unsafe (try? memory.read(into: bytes, at: source.address)) != nil else { return .unknown }
        return unsafe judge(UnsafeRawBufferPointer(bytes), at: source.address)
      }
    }
    let from = max(Int(source.offset), start)
    let to = min(Int(source.offset) + Int(source.length), start + part.count)
    guard from < to else { return .since(0) }
    let (address, overflow) = source.address.addingReportingOverflow(UInt64(from - Int(source.offset)))
    guard !overflow else { return .unknown }
    return unsafe judge(UnsafeRawBufferPointer(rebasing: part[from - start..<to - start]), at: address)
  }

  /// On the primary by copies of what checkpoints hold; a secondary has the newest one itself.
  private func judge(_ bytes: UnsafeRawBufferPointer, at address: UInt64) -> Standing {
    guard isFollowing else { return unsafe pages.standing(bytes, at: address) }
    return unsafe memory.isCheckpointed(bytes, at: address) ? .since(0) : .changed
  }

  private mutating func forget(_ flow: FlowKey) { count -= flows.removeValue(forKey: flow)?.count ?? 0 }

  // MARK: Rings

  private mutating func poll() {
    if generation != registers.generation {
      generation = registers.generation
      let known = Dictionary(rings.map { ($0.address, $0.next) }) { first, _ in first }
      rings = registers.rings.map { ($0, known[$0] ?? 1) }
    }
    for index in rings.indices {
      for _ in 0..<SourceRing.records {
        guard let next = take(rings[index].address, rings[index].next) else { break }
        rings[index].next = next
      }
    }
  }

  /// Takes the record `number` of a ring, or a later one in its place.
  /// - Returns: the number of the next; nil when there is none yet.
  private mutating func take(_ ring: UInt64, _ number: UInt64) -> UInt64? {
    let at = ring + (number &- 1) % SourceRing.records * SourceRecord.size
    guard let written = try? memory.load64(at: at + SourceRecord.number), written >= number, written < .max else {
      return nil
    }
    var record = InlineArray<256, UInt8>(repeating: 0)
    let isRead = unsafe withUnsafeMutableBytes(of: &record) { bytes in
      unsafe (try? memory.read(into: bytes, at: at)) != nil
    }
    // Written over meanwhile: whatever it is, it is not this one.
    guard isRead, (try? memory.load64(at: at + SourceRecord.number)) == written else { return written + 1 }
    unsafe withUnsafeBytes(of: &record) { unsafe keep($0) }
    return written + 1
  }

  private mutating func keep(_ bytes: UnsafeRawBufferPointer) {
    func load<T: BitwiseCopyable>(_: T.Type, _ offset: UInt64) -> T {
      unsafe bytes.loadUnaligned(fromByteOffset: Int(offset), as: T.self)
    }
    func address(_ offset: UInt64) -> FlowKey.Address {
      FlowKey.Address(high: load(UInt64.self, offset), low: load(UInt64.self, offset + 8))
    }
    let sources = Int(load(UInt8.self, SourceRecord.sourceCount))
    guard sources <= SourceRecord.mostSources else { return }
    var record = Record(
      sequence: load(UInt32.self, SourceRecord.sequence), length: load(UInt32.self, SourceRecord.length),
      sources: InlineArray(repeating: Source(address: 0, length: 0, offset: 0)), count: sources,
      hasOwnBuffers: load(UInt8.self, SourceRecord.flags) & SourceRecord.ownBuffers != 0)
    for index in 0..<sources {
      let at = SourceRecord.sources + UInt64(index) * 16
      record.sources[index] = Source(
        address: load(UInt64.self, at), length: load(UInt32.self, at + 8), offset: load(UInt32.self, at + 12))
    }
    let flow = FlowKey(
      source: address(SourceRecord.localAddress), destination: address(SourceRecord.remoteAddress),
      sourcePort: load(UInt16.self, SourceRecord.localPort),
      destinationPort: load(UInt16.self, SourceRecord.remotePort),
      proto: 6, version: load(UInt8.self, SourceRecord.version), vlan: 0)
    if count >= Self.mostRecords || flows.count >= Self.mostFlows {
      flows.removeAll()
      count = 0
    }
    if let known = flows[flow]?.count, known >= Self.perFlow { forget(flow) }
    flows[flow, default: []].append(record)
    count += 1
  }
}
