internal import CLinux
internal import GuestMemory
internal import Synchronization
internal import VirtioLayout

/// virtio-blk (virtio 1.2 §5.2) on a raw file.
///
/// What the page cache holds is read and written on the device thread, without a switch; whatever would wait goes to
/// the disk's worker threads. FLUSH is fdatasync: acknowledged only when the data is on stable storage.
public final class BlockDevice: VirtioDevice {
  static let finishedTag = VirtioMMIO.deviceTag
  /// Data segments a request may have: the queue less header and status.
  static let segmentMax = UInt32(Virtqueue.maximumSize) - 2
  /// Bytes of a segment: with as many of them as may be, a request stays below ``BlockRequest/Limit/transfer``.
  static let sizeMax: UInt32 = 64 << 10
  /// Bytes of a request that the device thread copies itself; a larger one would keep it for too long.
  static let inlineLimit: UInt64 = 1 << 20
  /// Bytes that may be on their way through the workers: who drains them waits. More stays in the guest's queue.
  static let inFlightLimit = 16 << 20

  private let disk: any Disk
  private let serial: [UInt8]
  private let workers: DiskWorkers
  private let slots: DiskSlots

  /// - Parameters:
  ///   - serial: what GET_ID answers, 20 bytes of it.
  ///   - workerCount: threads for requests that wait.
  ///   - onWorkerStart: runs first on each worker thread (its seccomp filter).
  public init(
    disk: any Disk, serial: String, workerCount: Int = 4, onWorkerStart: @escaping @Sendable () -> Void = {}
  ) throws(HostError) {
    self.disk = disk
    self.serial = Array(serial.utf8.prefix(BlockRequestHeader.idLength))
    let slots = DiskSlots(disk: disk)
    self.slots = slots
    workers = try DiskWorkers(
      count: workerCount, capacity: Int(Virtqueue.maximumSize), onStart: onWorkerStart, body: { slots.perform($0) })
  }

  /// Starts the worker threads.
  public func start() throws(HostError) { try workers.start() }

  /// Ends the worker threads. After the device thread has ended.
  public func shutDown() {
    disk.hurry(true)
    workers.stop()
  }

  /// What its disk is known by at this time. Reads from the disk; the guest stands still, or has not started.
  public func identify() -> DiskIdentity {
    var bytes = [UInt8](repeating: 0, count: Int(min(disk.capacity, DiskIdentity.beginningSize)))
    let isRead = disk.copy(into: &bytes, from: 0) == 0
    let beginning = unsafe bytes.withUnsafeBytes { unsafe lx_crc32c(0, $0.baseAddress, $0.count) }
    return DiskIdentity(
      capacity: disk.capacity, isReadOnly: disk.isReadOnly, serial: serial, beginning: isRead ? beginning : nil)
  }

  public var deviceID: UInt32 { DeviceID.block }
  public var queueCount: Int { 1 }
  public var polls: Bool { true }
  /// Reading, writing and making durable come to the same when done twice.
  public var repeatsRequests: Bool { true }

  public var features: UInt64 {
    let common = BlockFeature.sizeMax | BlockFeature.segmentMax | BlockFeature.blockSize | BlockFeature.flush
    return common | (disk.isReadOnly ? BlockFeature.readOnly : BlockFeature.discard | BlockFeature.writeZeroes)
  }

  /// struct virtio_blk_config, §5.2.4.
  public var configuration: [UInt8] {
    var fields = [UInt8](repeating: 0, count: 60)
    func put<T: FixedWidthInteger>(_ value: T, at offset: Int) {
      for index in 0..<T.bitWidth / 8 { fields[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
    }
    func sectors(_ bytes: UInt64) -> UInt32 { UInt32(bytes / BlockRequestHeader.sectorSize) }
    put(disk.capacity / BlockRequestHeader.sectorSize, at: 0)
    put(Self.sizeMax, at: 8)
    put(Self.segmentMax, at: 12)
    put(UInt32(BlockRequestHeader.sectorSize), at: 20)  // blk_size
    put(sectors(BlockRequest.Limit.discardRange), at: 36)  // max_discard_sectors
    put(UInt32(BlockRequest.Limit.discardRanges), at: 40)  // max_discard_seg
    put(UInt32(8), at: 44)  // discard_sector_alignment: 4 KiB
    put(sectors(BlockRequest.Limit.zeroesRange), at: 48)  // max_write_zeroes_sectors
    put(UInt32(BlockRequest.Limit.zeroesRanges), at: 52)  // max_write_zeroes_seg
    put(UInt8(1), at: 56)  // write_zeroes_may_unmap
    return fields
  }

  public func attach(to loop: EventLoop, handler: any EventHandler) throws(HostError) {
    _ = try loop.register(
      workers.finishedDescriptor, events: EPOLLIN.rawValue, handler: handler, tag: Self.finishedTag)
  }

  public func process(queue: Int, _ queues: inout QueueSet) -> Bool {
    var chain = slots.spareChain
    defer { slots.spareChain = chain }
    queues.disableNotifications(queue)
    let visit = Visit()
    for count in 1...Int(Virtqueue.maximumSize) {
      // An end of those under way comes back here.
      guard !queues.isHeldBack else { break }
      guard queues.pop(queue, into: &chain) else {
        queues.flush(queue)
        guard queues.enableNotifications(queue) else { return false }
        continue
      }
      handle(&chain, queue, &queues)
      // A driver that polls sees progress early; one that sleeps is woken once a batch.
      if count % 16 == 0 { queues.flush(queue) }
      if visit.isOver { break }
    }
    queues.flush(queue)
    return !queues.isHeldBack
  }

  private func handle(_ chain: inout DescriptorChain, _ queue: Int, _ queues: inout QueueSet) {
    let memory = queues.memory
    guard
      let request = BlockRequest(
        chain, memory: memory, capacity: disk.capacity, readOnly: disk.isReadOnly, features: queues.features)
    else {
      queues.mistakes.add(.request)
      return queues.push(queue, head: chain.head, written: 0)
    }
    var outcome = DiskOutcome.wouldBlock
    switch request.operation {
    case .read(let position, let count) where count <= Self.inlineLimit:
      outcome = disk.read(memory, chain.writable, count: count, position: position, nowait: true)
    case .write(let position, let count) where count <= Self.inlineLimit && !request.writesThrough:
      outcome = disk.write(
        memory, chain.readable, offset: UInt64(BlockRequestHeader.size), count: count, position: position,
        nowait: true)
    case .identify:
      let bytes = serial + [UInt8](repeating: 0, count: BlockRequestHeader.idLength - serial.count)
      guard request.statusOffset >= UInt64(bytes.count) else {
        return complete(chain, request, status: BlockStatus.ioError, written: 0, queue, &queues)
      }
      unsafe bytes.withUnsafeBytes { _ = unsafe memory.scatter($0, to: chain.writable) }
      return complete(chain, request, status: BlockStatus.ok, written: UInt64(bytes.count), queue, &queues)
    case .refuse(let status):
      queues.mistakes.add(.request)
      return complete(chain, request, status: status, written: 0, queue, &queues)
    case .read, .write, .flush, .discard, .writeZeroes: break
    }
    // An error of an attempt without waiting is none of the request's: a file system may refuse the attempt as such.
    if outcome == .done {
      complete(chain, request, outcome, queue, &queues)
    } else {
      workers.submit(slots.fill(&chain, request, memory))
      queues.isHeldBack = slots.bytes > Self.inFlightLimit
    }
  }

  private func complete(
    _ chain: DescriptorChain, _ request: BlockRequest, _ outcome: DiskOutcome, _ queue: Int,
    _ queues: inout QueueSet
  ) {
    let ok = outcome == .done
    var written: UInt64 = 0
    if ok, case .read(_, let count) = request.operation { written = count }
    complete(chain, request, status: ok ? BlockStatus.ok : BlockStatus.ioError, written: written, queue, &queues)
  }

  private func complete(
    _ chain: DescriptorChain, _ request: BlockRequest, status: UInt8, written: UInt64, _ queue: Int,
    _ queues: inout QueueSet
  ) {
    queues.memory.scatter(status, to: chain.writable, offset: request.statusOffset)
    // Used length counts what was written from the start on: without the data in between, only the status is claimed.
    queues.push(queue, head: chain.head, written: UInt32(truncatingIfNeeded: written + 1))
  }

  public func event(tag: UInt32, events: UInt32, _ queues: inout QueueSet) -> Int? {
    let wasHeldBack = queues.isHeldBack
    finish(&queues)
    return wasHeldBack && !queues.isHeldBack ? 0 : nil
  }

  private func finish(_ queues: inout QueueSet) {
    slots.takeFinished(workers) { chain, request, outcome in complete(chain, request, outcome, 0, &queues) }
    queues.isHeldBack = slots.bytes > Self.inFlightLimit
    queues.flush(0)
  }

  public func quiesce(_ queues: inout QueueSet) {
    drain()
    finish(&queues)
  }

  private func drain() {
    disk.hurry(true)
    workers.drain()
    disk.hurry(false)
  }

  public func reset() {
    drain()
    slots.takeFinished(workers) { _, _, _ in }
  }
}
