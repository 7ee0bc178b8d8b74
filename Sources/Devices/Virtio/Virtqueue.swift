public import GuestMemory
internal import StateCodec
internal import Synchronization
internal import VirtioLayout

/// What a driver did wrong with a queue. It costs that device a reset, nothing else.
public enum QueueError: Error, Equatable, Sendable {
  /// The avail index moved by more than the queue holds.
  case availIndexJumped(UInt16)
  case headOutOfRange(UInt16)
  /// The same head was made available again before it was used.
  case headInFlight(UInt16)
  case nextOutOfRange(UInt16)
  /// More descriptors than the queue has: a loop, or too many.
  case chainTooLong
  case emptyBuffer
  case bufferOutsideRAM(address: UInt64, length: UInt32)
  case chainTooLarge
  case readableAfterWritable
  case indirectNotNegotiated
  case indirectNested
  case indirectWithNext
  case indirectBadLength(UInt32)
  /// A ring that was inside RAM at set-up no longer resolves: can't happen while RAM does not shrink.
  case ringOutsideRAM
}

/// One popped chain: a head and its validated buffers. Reused from request to request.
public struct DescriptorChain: Sendable {
  public internal(set) var head: UInt16 = 0
  public internal(set) var readable = GuestBuffers()
  public internal(set) var writable = GuestBuffers()

  public init() {}
}

/// Device side of a split virtqueue (virtio 1.2 §2.7): plain state and the operations on guest RAM.
///
/// A chain is validated whole when it is popped; a device sees only bounded buffers. Ring words are read once each.
/// Owned by its transport, used under the transport's lock.
public struct Virtqueue: Sendable, Equatable {
  public static let maximumSize: UInt16 = 256

  public internal(set) var size: UInt16 = 0
  public internal(set) var ready = false
  public internal(set) var descriptorTable: UInt64 = 0
  public internal(set) var availRing: UInt64 = 0
  public internal(set) var usedRing: UInt64 = 0
  /// Next entry of the avail ring to pop; free-running.
  public private(set) var nextAvail: UInt16 = 0
  /// Used index after everything filled, published or not; free-running.
  public private(set) var nextUsed: UInt16 = 0
  /// Used index at which the driver's wish for an interrupt was last looked at.
  private var notedUsed: UInt16 = 0
  /// Popped and not yet filled.
  private var inFlight = HeadSet()
  /// Was in flight where this state comes from: popped again, before what the ring has.
  private var unfinished = HeadSet()
  var eventIndex = false
  var indirect = false

  public init() {}

  // MARK: Set-up

  /// Whether the driver's addresses and size can be used: size a power of two within bounds, every part aligned,
  /// inside one RAM region, and clear of the others.
  func isWellFormed(in memory: GuestMemory) -> Bool {
    guard size != 0, size <= Self.maximumSize, size & (size - 1) == 0 else { return false }
    let parts = [
      (descriptorTable, SplitRing.descriptorTableSize(size), SplitRing.descriptorAlignment),
      (availRing, SplitRing.availSize(size), SplitRing.availAlignment),
      (usedRing, SplitRing.usedSize(size), SplitRing.usedAlignment),
    ]
    for (index, (address, count, alignment)) in parts.enumerated() {
      guard address % alignment == 0, memory.fileOffset(of: address, count: count) != nil else { return false }
      for (other, otherCount, _) in parts[..<index] where address < other + otherCount && other < address + count {
        return false
      }
    }
    return true
  }

  // MARK: Taking chains

  /// How many chains wait to be popped.
  public func pending(_ memory: GuestMemory) throws(QueueError) -> UInt16 {
    try waiting(memory) + unfinished.count
  }

  /// How many of them the driver has made available and the device has never popped.
  private func waiting(_ memory: GuestMemory) throws(QueueError) -> UInt16 {
    let waiting =
      try ring { () throws(GuestMemoryError) in
        try memory.loadAcquiring16(at: availRing + SplitRing.indexOffset)
      } &- nextAvail
    guard waiting <= size else { throw .availIndexJumped(waiting) }
    return waiting
  }

  /// Takes the next available chain into `chain`; false when there is none.
  public mutating func pop(_ memory: GuestMemory, into chain: inout DescriptorChain) throws(QueueError) -> Bool {
    guard ready else { return false }
    if let head = unfinished.first {
      try walk(from: head, memory, into: &chain)
      unfinished.remove(head)
      inFlight.insert(head)
      return true
    }
    guard try waiting(memory) != 0 else { return false }
    let slot = availRing + SplitRing.ringOffset + 2 * UInt64(nextAvail & (size &- 1))
    let head = try ring { () throws(GuestMemoryError) in try memory.loadAcquiring16(at: slot) }
    guard head < size else { throw .headOutOfRange(head) }
    guard !inFlight.contains(head) else { throw .headInFlight(head) }
    try walk(from: head, memory, into: &chain)
    inFlight.insert(head)
    nextAvail &+= 1
    return true
  }

  private func walk(from head: UInt16, _ memory: GuestMemory, into chain: inout DescriptorChain) throws(QueueError) {
    chain.head = head
    chain.readable.removeAll()
    chain.writable.removeAll()
    var table = descriptorTable
    var tableCount = UInt32(size)
    var index = head
    var inIndirect = false
    // virtio 1.2 §2.7.5.3.1: a chain, indirect or not, is never longer than the queue.
    var budget = size
    while true {
      guard UInt32(index) < tableCount else { throw .nextOutOfRange(index) }
      let at = table + VirtqueueDescriptor.size * UInt64(index)
      let descriptor = try ring { () throws(GuestMemoryError) in
        VirtqueueDescriptor(low: try memory.load64(at: at), high: try memory.load64(at: at + 8))
      }
      if descriptor.flags & VirtqueueDescriptor.indirect != 0 {
        guard indirect else { throw .indirectNotNegotiated }
        guard !inIndirect else { throw .indirectNested }
        guard descriptor.flags & VirtqueueDescriptor.next == 0 else { throw .indirectWithNext }
        guard
          descriptor.length != 0, descriptor.length % UInt32(VirtqueueDescriptor.size) == 0,
          descriptor.length / UInt32(VirtqueueDescriptor.size) <= UInt32(UInt16.max) + 1
        else { throw .indirectBadLength(descriptor.length) }
        guard
          descriptor.address % 8 == 0,
          memory.fileOffset(of: descriptor.address, count: UInt64(descriptor.length)) != nil
        else { throw .bufferOutsideRAM(address: descriptor.address, length: descriptor.length) }
        table = descriptor.address
        tableCount = descriptor.length / UInt32(VirtqueueDescriptor.size)
        index = 0
        inIndirect = true
        continue
      }
      guard budget > 0 else { throw .chainTooLong }
      budget -= 1
      guard descriptor.length != 0 else { throw .emptyBuffer }
      let writable = descriptor.flags & VirtqueueDescriptor.write != 0
      guard writable || chain.writable.pieces.isEmpty else { throw .readableAfterWritable }
      guard memory.fileOffset(of: descriptor.address, count: UInt64(descriptor.length)) != nil else {
        throw .bufferOutsideRAM(address: descriptor.address, length: descriptor.length)
      }
      let fits =
        writable
        ? chain.writable.append(address: descriptor.address, count: UInt64(descriptor.length), in: memory)
        : chain.readable.append(address: descriptor.address, count: UInt64(descriptor.length), in: memory)
      // The used length is 32 bits wide, and so is the sum of both directions.
      guard fits, chain.readable.count + chain.writable.count <= UInt64(UInt32.max) else { throw .chainTooLarge }
      guard descriptor.flags & VirtqueueDescriptor.next != 0 else { return }
      index = descriptor.nextIndex
    }
  }

  /// Gives back the `count` chains popped last, none of which has been filled: they will be popped again.
  public mutating func unpop(_ heads: ArraySlice<UInt16>) {
    for head in heads { inFlight.remove(head) }
    nextAvail &-= UInt16(truncatingIfNeeded: heads.count)
  }

  public mutating func unpop(_ head: UInt16) {
    inFlight.remove(head)
    nextAvail &-= 1
  }

  // MARK: Returning chains

  /// Writes a used entry, not yet visible to the driver. `written` is at most the chain's writable bytes.
  public mutating func fill(_ memory: GuestMemory, head: UInt16, written: UInt32) throws(QueueError) {
    let entry = usedRing + SplitRing.ringOffset + 8 * UInt64(nextUsed & (size &- 1))
    try ring { () throws(GuestMemoryError) in
      try memory.store(UInt64(head) | UInt64(written) << 32, at: entry)
    }
    inFlight.remove(head)
    nextUsed &+= 1
  }

  /// Makes every filled entry visible: the index goes last, with release order.
  public func publish(_ memory: GuestMemory) throws(QueueError) {
    try ring { () throws(GuestMemoryError) in
      try memory.storeReleasing16(nextUsed, at: usedRing + SplitRing.indexOffset)
    }
  }

  /// Whether the driver wants an interrupt for what was published since the last call.
  public mutating func wantsInterrupt(_ memory: GuestMemory) throws(QueueError) -> Bool {
    let old = notedUsed
    notedUsed = nextUsed
    guard old != nextUsed else { return false }
    // The index store above must be visible before the driver's wish is read, else both sides may wait (§2.7.7.1).
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return try ring { () throws(GuestMemoryError) in
      if eventIndex {
        let event = try memory.loadAcquiring16(at: availRing + SplitRing.usedEventOffset(size))
        return SplitRing.passes(event: event, from: old, to: nextUsed)
      }
      return try memory.loadAcquiring16(at: availRing + SplitRing.flagsOffset) & SplitRing.noInterrupt == 0
    }
  }

  /// Asks the driver to notify when more than `known` chains wait. Returns true when they do by now: look again.
  public func enableNotifications(_ memory: GuestMemory, beyond known: UInt16 = 0) throws(QueueError) -> Bool {
    try ring { () throws(GuestMemoryError) in
      if eventIndex {
        try memory.storeReleasing16(nextAvail &+ known, at: usedRing + SplitRing.availEventOffset(size))
      } else {
        try memory.storeReleasing16(0, at: usedRing + SplitRing.flagsOffset)
      }
    }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    return try pending(memory) > known
  }

  /// Asks the driver not to notify. With EVENT_IDX nothing needs doing: the old event index stays behind.
  public func disableNotifications(_ memory: GuestMemory) throws(QueueError) {
    guard !eventIndex else { return }
    try ring { () throws(GuestMemoryError) in
      try memory.storeReleasing16(SplitRing.noNotify, at: usedRing + SplitRing.flagsOffset)
    }
  }

  /// As ``disableNotifications(_:)``, also after notifications were asked for: an event index that the driver has passed
  /// lies a whole turn of the counter ahead.
  func suspendNotifications(_ memory: GuestMemory) throws(QueueError) {
    guard eventIndex else { return try disableNotifications(memory) }
    try ring { () throws(GuestMemoryError) in
      try memory.storeReleasing16(nextAvail &- 1, at: usedRing + SplitRing.availEventOffset(size))
    }
  }

  // MARK: In flight

  mutating func forgetInFlight() { (inFlight, unfinished) = (HeadSet(), HeadSet()) }

  /// Whether chains are with the device, or were where this state comes from.
  public var hasInFlight: Bool { !inFlight.isEmpty || !unfinished.isEmpty }

  @inline(__always)
  private func ring<R>(_ body: () throws(GuestMemoryError) -> R) throws(QueueError) -> R {
    do throws(GuestMemoryError) { return try body() } catch { throw .ringOutsideRAM }
  }

  // MARK: State

  func save(to writer: inout StateWriter) {
    writer.put(size)
    writer.put(ready)
    writer.put(descriptorTable)
    writer.put(availRing)
    writer.put(usedRing)
    writer.put(nextAvail)
    writer.put(nextUsed)
    writer.put(notedUsed)
    inFlight.union(unfinished).save(to: &writer)
  }

  /// - Parameter version: of the section that this is in; before 2, nothing was in flight.
  static func restore(
    from reader: inout StateReader, version: UInt16, memory: GuestMemory, features: UInt64
  ) throws(StateError) -> Virtqueue {
    var queue = Virtqueue()
    queue.size = try reader.get()
    queue.ready = try reader.get(Bool.self)
    queue.descriptorTable = try reader.get()
    queue.availRing = try reader.get()
    queue.usedRing = try reader.get()
    queue.nextAvail = try reader.get()
    queue.nextUsed = try reader.get()
    queue.notedUsed = try reader.get()
    if version >= 2 { queue.unfinished = try HeadSet(from: &reader) }
    queue.eventIndex = features & CommonFeature.eventIndex != 0
    queue.indirect = features & CommonFeature.indirectDescriptors != 0
    guard !queue.ready || queue.isWellFormed(in: memory) else { throw .invalid("a ready queue with unusable rings") }
    guard queue.size <= maximumSize else { throw .invalid("queue size \(queue.size)") }
    guard queue.unfinished.isBelow(queue.size) else { throw .invalid("a request in flight beyond the queue") }
    return queue
  }
}

/// A set of heads of one queue, 1 bit each.
private struct HeadSet: Equatable, Sendable {
  private var words = SIMD4<UInt64>()

  init() {}

  init(from reader: inout StateReader) throws(StateError) {
    for index in words.indices { words[index] = try reader.get() }
  }

  func save(to writer: inout StateWriter) {
    for index in words.indices { writer.put(words[index]) }
  }

  var isEmpty: Bool { words == SIMD4() }
  var count: UInt16 { words.indices.reduce(0) { $0 + UInt16(words[$1].nonzeroBitCount) } }
  var first: UInt16? {
    words.indices.first { words[$0] != 0 }.map { UInt16($0 * 64 + words[$0].trailingZeroBitCount) }
  }

  func contains(_ head: UInt16) -> Bool { words[Int(head >> 6)] >> UInt64(head & 63) & 1 != 0 }
  mutating func insert(_ head: UInt16) { words[Int(head >> 6)] |= 1 << UInt64(head & 63) }
  mutating func remove(_ head: UInt16) { words[Int(head >> 6)] &= ~(1 << UInt64(head & 63)) }

  func union(_ other: HeadSet) -> HeadSet {
    var all = self
    all.words |= other.words
    return all
  }

  /// Whether every head in it is below `limit`.
  func isBelow(_ limit: UInt16) -> Bool {
    words.indices.allSatisfy { index in
      words[index] == 0 || index * 64 + 63 - words[index].leadingZeroBitCount < Int(limit)
    }
  }
}
