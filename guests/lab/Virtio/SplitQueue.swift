import LabC

/// The three parts of a split virtqueue in guest memory.
struct QueueMemory {
  let size: UInt16
  let descriptors: UnsafeMutableRawPointer
  let avail: UnsafeMutableRawPointer
  let used: UnsafeMutableRawPointer
  let tokens: UnsafeMutablePointer<UInt>

  /// Each part on pages of its own: what driver and device write stays apart.
  init(size: UInt16) {
    self.size = size
    descriptors = Arena.take(Int(SplitRing.descriptorTableSize(size)), alignment: 4096)
    avail = Arena.take(Int(SplitRing.availSize(size)), alignment: 4096)
    used = Arena.take(Int(SplitRing.usedSize(size)), alignment: 4096)
    tokens = Arena.takeZeroed(UInt.self, count: Int(size))
  }

  /// No memory.
  init() {
    size = 0
    descriptors = .unset
    avail = .unset
    used = .unset
    tokens = .unset
  }

  func clear() {
    _ = memset(descriptors, 0, Int(SplitRing.descriptorTableSize(size)))
    _ = memset(avail, 0, Int(SplitRing.availSize(size)))
    _ = memset(used, 0, Int(SplitRing.usedSize(size)))
  }
}

/// Driver side of a split virtqueue (virtio 1.2 §2.7). Chains are built with ``append(_:_:writable:)`` and handed over
/// with ``publish(token:)``; the token comes back with ``takeUsed()``.
struct SplitQueue {
  let memory: QueueMemory
  let size: UInt16
  let index: UInt32
  let notifyAddress: UInt64
  let eventIndex: Bool
  private(set) var freeCount: UInt16
  private var freeHead: UInt16 = 0
  /// The chain being built.
  private var chainHead: UInt16 = 0
  private var chainTail: UInt16 = 0
  private var chainLength: UInt16 = 0
  /// Avail index as published, and as it was at the last notification.
  private(set) var availIndex: UInt16 = 0
  private var notifiedIndex: UInt16 = 0
  private(set) var usedIndex: UInt16 = 0
  private var armed = false

  init(_ memory: QueueMemory, size: UInt16, index: UInt32, notifyAddress: UInt64, _ eventIndex: Bool) {
    self.memory = memory
    self.size = size
    self.index = index
    self.notifyAddress = notifyAddress
    self.eventIndex = eventIndex
    freeCount = size
    for i in 0..<size { setNext(i, i &+ 1) }
    if !eventIndex { store16(memory.avail, SplitRing.noInterrupt) }
  }

  /// No queue: before the device is set up.
  init() {
    memory = QueueMemory()
    size = 0
    index = 0
    notifyAddress = 0
    eventIndex = false
    freeCount = 0
  }

  /// Chains handed over and not yet back.
  var inFlight: UInt16 { size - freeCount }

  @inline(__always)
  private func descriptor(_ i: UInt16) -> UnsafeMutableRawPointer { memory.descriptors + Int(i) * 16 }

  private func setNext(_ i: UInt16, _ next: UInt16) {
    descriptor(i).storeBytes(of: next, toByteOffset: 14, as: UInt16.self)
  }

  private func next(_ i: UInt16) -> UInt16 { descriptor(i).load(fromByteOffset: 14, as: UInt16.self) }

  /// Adds a buffer to the chain. The caller has made sure of `freeCount`.
  mutating func append(_ bufferAddress: UInt64, _ length: UInt32, writable: Bool) {
    let i = freeHead
    freeHead = next(i)
    freeCount -= 1
    let slot = descriptor(i)
    slot.storeBytes(of: bufferAddress, as: UInt64.self)
    slot.storeBytes(of: length, toByteOffset: 8, as: UInt32.self)
    slot.storeBytes(of: writable ? VirtqueueDescriptor.write : 0, toByteOffset: 12, as: UInt16.self)
    if chainLength == 0 {
      chainHead = i
    } else {
      let tail = descriptor(chainTail)
      let flags = tail.load(fromByteOffset: 12, as: UInt16.self)
      tail.storeBytes(of: flags | VirtqueueDescriptor.next, toByteOffset: 12, as: UInt16.self)
      setNext(chainTail, i)
    }
    chainTail = i
    chainLength += 1
  }

  /// The descriptor that ``append(_:_:writable:)`` will use next: the head, when the chain is empty.
  var nextDescriptor: UInt16 { freeHead }

  mutating func publish(token: UInt) {
    memory.tokens[Int(chainHead)] = token
    let slot = Int(SplitRing.ringOffset) + 2 * Int(availIndex & (size - 1))
    memory.avail.storeBytes(of: chainHead, toByteOffset: slot, as: UInt16.self)
    availIndex &+= 1
    store16(memory.avail + Int(SplitRing.indexOffset), availIndex)
    chainLength = 0
  }

  /// Notifies the device of what was published since the last time, if it wants to know.
  mutating func notifyIfNeeded() {
    guard notifiedIndex != availIndex else { return }
    cpu_fence()
    let wanted: Bool
    if eventIndex {
      let event = load16(memory.used + Int(SplitRing.availEventOffset(size)))
      wanted = SplitRing.passes(event: event, from: notifiedIndex, to: availIndex)
    } else {
      wanted = load16(memory.used) & SplitRing.noNotify == 0
    }
    notifiedIndex = availIndex
    if wanted { mmio_write32(notifyAddress, index) }
  }

  var hasUsed: Bool { load16(memory.used + Int(SplitRing.indexOffset)) != usedIndex }

  /// The next chain the device is done with: its token and how many bytes were written. Its descriptors are free again.
  mutating func takeUsed() -> (token: UInt, written: UInt32)? {
    guard hasUsed else { return nil }
    let entry = memory.used + Int(SplitRing.ringOffset) + 8 * Int(usedIndex & (size - 1))
    let id = entry.load(as: UInt32.self)
    let written = entry.load(fromByteOffset: 4, as: UInt32.self)
    usedIndex &+= 1
    guard id < UInt32(size) else { return (0, 0) }
    let head = UInt16(id)
    var tail = head
    var count: UInt16 = 1
    while descriptor(tail).load(fromByteOffset: 12, as: UInt16.self) & VirtqueueDescriptor.next != 0, count < size {
      tail = next(tail)
      count += 1
    }
    setNext(tail, freeHead)
    freeHead = head
    freeCount += count
    return (memory.tokens[Int(head)], written)
  }

  /// Asks for an interrupt at the next used entry. False if there is one already.
  mutating func arm() -> Bool {
    if eventIndex {
      store16(memory.avail + Int(SplitRing.usedEventOffset(size)), usedIndex)
    } else {
      store16(memory.avail, 0)
    }
    armed = true
    cpu_fence()
    return !hasUsed
  }

  /// Undoes ``arm()``. True if the device has raised its interrupt since, so that it must be acknowledged.
  mutating func disarm() -> Bool {
    guard armed else { return false }
    armed = false
    if !eventIndex { store16(memory.avail, SplitRing.noInterrupt) }
    return hasUsed
  }
}
