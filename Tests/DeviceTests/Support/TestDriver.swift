import CLinux
import Devices
import Glibc
import GuestMemory
import Testing
import VirtioLayout

/// One buffer of a chain, as a driver describes it.
struct Buffer {
  var address: UInt64
  var length: UInt32
  var writable: Bool

  static func readable(_ address: UInt64, _ length: UInt32) -> Buffer {
    Buffer(address: address, length: length, writable: false)
  }
  static func writable(_ address: UInt64, _ length: UInt32) -> Buffer {
    Buffer(address: address, length: length, writable: true)
  }
}

/// An entry of the used ring.
struct Used: Equatable {
  var head: UInt16
  var written: UInt32
}

/// The driver's side of one split virtqueue.
struct DriverQueue {
  let index: Int
  let size: UInt16
  let descriptors: UInt64
  let avail: UInt64
  let used: UInt64
  var free: [UInt16]
  var chains: [UInt16: [UInt16]] = [:]
  var availIndex: UInt16 = 0
  var lastUsed: UInt16 = 0

  /// Rings of queue `index` live at `base` + 64 KiB + 16 KiB × index; 256 entries fit.
  init(index: Int, size: UInt16, base: UInt64 = 0) {
    self.index = index
    self.size = size
    descriptors = base + 0x1_0000 + 0x4000 * UInt64(index)
    avail = descriptors + 0x1000
    used = descriptors + 0x2000
    free = Array((0..<size).reversed())
  }
}

/// A driver for one virtio-mmio device, written as guests do it: registers, rings in guest RAM, nothing else. What it
/// stores is not marked dirty, as a vCPU's stores are not. The device thread's part is done by ``run()``.
final class TestDriver: @unchecked Sendable {
  /// Free RAM for buffers starts here.
  static let buffers: UInt64 = 0x10_0000

  let memory: GuestMemory
  let loop: EventLoop
  let line: InterruptLine
  let mmio: VirtioMMIO
  var queues: [DriverQueue] = []

  init(_ device: any VirtioDevice, memory: GuestMemory? = nil, name: String = "dev0") throws {
    self.memory = try memory ?? GuestMemory(size: 4 << 20)
    loop = try EventLoop()
    line = try InterruptLine()
    mmio = try VirtioMMIO(name: name, device: device, memory: self.memory, line: line, loop: loop)
  }

  // MARK: Registers

  func write(_ register: UInt64, _ value: UInt32) { mmio.write(offset: register, size: 4, value: UInt64(value)) }
  func read(_ register: UInt64) -> UInt32 { UInt32(truncatingIfNeeded: mmio.read(offset: register, size: 4)) }

  var status: UInt32 { read(MMIORegister.status) }
  var needsReset: Bool { status & DeviceStatus.needsReset != 0 }
  func setStatus(_ bits: UInt32) { write(MMIORegister.status, bits) }
  func reset() { setStatus(0) }

  var offeredFeatures: UInt64 {
    write(MMIORegister.deviceFeaturesSelect, 0)
    let low = UInt64(read(MMIORegister.deviceFeatures))
    write(MMIORegister.deviceFeaturesSelect, 1)
    return low | UInt64(read(MMIORegister.deviceFeatures)) << 32
  }

  /// From reset to FEATURES_OK; VERSION_1 is always asked for.
  func negotiate(_ features: UInt64 = 0) {
    reset()
    setStatus(DeviceStatus.acknowledge)
    setStatus(DeviceStatus.acknowledge | DeviceStatus.driver)
    let wanted = features | CommonFeature.version1
    write(MMIORegister.driverFeaturesSelect, 0)
    write(MMIORegister.driverFeatures, UInt32(truncatingIfNeeded: wanted))
    write(MMIORegister.driverFeaturesSelect, 1)
    write(MMIORegister.driverFeatures, UInt32(truncatingIfNeeded: wanted >> 32))
    setStatus(DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.featuresOK)
  }

  /// Writes one queue's registers and returns what QueueReady then reads.
  @discardableResult
  func setUpQueue(
    _ index: Int, size: UInt32, descriptors: UInt64? = nil, avail: UInt64? = nil, used: UInt64? = nil
  ) -> UInt32 {
    let place = DriverQueue(index: index, size: 1)
    write(MMIORegister.queueSelect, UInt32(index))
    write(MMIORegister.queueSize, size)
    let parts = [
      (MMIORegister.queueDescriptorLow, descriptors ?? place.descriptors),
      (MMIORegister.queueDriverLow, avail ?? place.avail), (MMIORegister.queueDeviceLow, used ?? place.used),
    ]
    for (register, address) in parts {
      write(register, UInt32(truncatingIfNeeded: address))
      write(register + 4, UInt32(truncatingIfNeeded: address >> 32))
    }
    write(MMIORegister.queueReady, 1)
    return read(MMIORegister.queueReady)
  }

  /// From reset to DRIVER_OK with every queue of `size` entries and empty rings, in RAM from `base` on.
  func start(_ features: UInt64 = 0, size: UInt16 = 8, queueCount: Int = 1, base: UInt64 = 0) {
    negotiate(features)
    queues = (0..<queueCount).map { DriverQueue(index: $0, size: size, base: base) }
    for queue in queues {
      fill(queue.descriptors, 0x4000, 0)
      setUpQueue(
        queue.index, size: UInt32(size), descriptors: queue.descriptors, avail: queue.avail, used: queue.used)
    }
    setStatus(status | DeviceStatus.driverOK)
    run()
  }

  // MARK: Guest stores and loads

  /// A guest's store: into RAM, past the VMM's dirty tracking.
  func poke<T: BitwiseCopyable>(_ value: T, at address: UInt64) {
    guard let host = unsafe memory.hostPointer(at: address, count: UInt64(MemoryLayout<T>.size)) else {
      Issue.record("the test stores outside RAM: \(address)")
      return
    }
    unsafe host.storeBytes(of: value, as: T.self)
  }

  func fill(_ address: UInt64, _ count: Int, _ byte: UInt8) {
    guard let host = unsafe memory.hostPointer(at: address, count: UInt64(count)) else {
      Issue.record("the test stores outside RAM: \(address)")
      return
    }
    _ = unsafe memset(host, Int32(byte), count)
  }

  func poke(bytes: [UInt8], at address: UInt64) {
    for (index, byte) in bytes.enumerated() { poke(byte, at: address + UInt64(index)) }
  }

  func peek<T: BitwiseCopyable>(_ type: T.Type = T.self, at address: UInt64) -> T {
    guard let host = unsafe memory.hostPointer(at: address, count: UInt64(MemoryLayout<T>.size)) else {
      preconditionFailure("the test loads outside RAM: \(address)")
    }
    return unsafe host.loadUnaligned(as: type)
  }

  func bytes(_ address: UInt64, _ count: Int) -> [UInt8] {
    (try? memory.bytes(at: address, count: count)) ?? []
  }

  // MARK: Rings

  /// Writes one descriptor as it is given.
  func describe(
    queue: Int = 0, _ index: UInt16, _ address: UInt64, _ length: UInt32, flags: UInt16 = 0, next: UInt16 = 0
  ) {
    describe(table: queues[queue].descriptors, index, address, length, flags: flags, next: next)
  }

  /// Writes one descriptor of any table (an indirect one, say).
  func describe(
    table: UInt64, _ index: UInt16, _ address: UInt64, _ length: UInt32, flags: UInt16 = 0, next: UInt16 = 0
  ) {
    let at = table + 16 * UInt64(index)
    poke(address, at: at)
    poke(length, at: at + 8)
    poke(flags, at: at + 12)
    poke(next, at: at + 14)
  }

  /// Puts `head` into the avail ring and moves its index.
  func offer(_ head: UInt16, queue: Int = 0) {
    let ring = queues[queue]
    poke(head, at: ring.avail + 4 + 2 * UInt64(ring.availIndex % ring.size))
    queues[queue].availIndex &+= 1
    setAvailIndex(queues[queue].availIndex, queue: queue)
  }

  func setAvailIndex(_ value: UInt16, queue: Int = 0) {
    atomicFence()
    poke(value, at: queues[queue].avail + 2)
  }

  /// A well-formed chain of free descriptors, offered; nil when there are too few.
  @discardableResult
  func add(_ queue: Int = 0, _ buffers: [Buffer]) -> UInt16? {
    guard queues[queue].free.count >= buffers.count, !buffers.isEmpty else { return nil }
    let chain = buffers.map { _ in queues[queue].free.removeLast() }
    for (position, buffer) in buffers.enumerated() {
      let last = position == buffers.count - 1
      describe(
        queue: queue, chain[position], buffer.address, buffer.length,
        flags: (buffer.writable ? VirtqueueDescriptor.write : 0) | (last ? 0 : VirtqueueDescriptor.next),
        next: last ? 0 : chain[position + 1])
    }
    queues[queue].chains[chain[0]] = chain
    offer(chain[0], queue: queue)
    return chain[0]
  }

  var usedIndexes: [UInt16] { queues.map { (try? memory.loadAcquiring16(at: $0.used + 2)) ?? 0 } }

  /// Entries of the used ring not looked at yet; their descriptors are free again.
  func takeUsed(_ queue: Int = 0) -> [Used] {
    var entries: [Used] = []
    let ring = queues[queue]
    // One load: read byte by byte, an index that passes 255 meanwhile is neither the old nor the new one.
    let index = (try? memory.loadAcquiring16(at: ring.used + 2)) ?? 0
    while queues[queue].lastUsed != index {
      let at = ring.used + 4 + 8 * UInt64(queues[queue].lastUsed % ring.size)
      let head = UInt16(truncatingIfNeeded: peek(UInt32.self, at: at))
      entries.append(Used(head: head, written: peek(at: at + 4)))
      if let chain = queues[queue].chains.removeValue(forKey: head) { queues[queue].free.append(contentsOf: chain) }
      queues[queue].lastUsed &+= 1
    }
    return entries
  }

  // MARK: The device thread's part

  /// Notifies a queue and does what the device thread would.
  func kick(_ queue: Int = 0) {
    write(MMIORegister.queueNotify, UInt32(queue))
    run()
  }

  /// Visits every queue that was notified, as the device thread would, until none is.
  func run() {
    for _ in 0..<10_000 {
      let notified = mmio.notifyDescriptors.indices.filter { isReadable(mmio.notifyDescriptors[$0]) }
      if notified.isEmpty { return }
      for queue in notified { mmio.ready(tag: UInt32(queue), events: EPOLLIN.rawValue) }
    }
    Issue.record("a queue notifies itself for ever")
  }

  /// Does the device thread's part until `count` entries have come back, or `seconds` have passed.
  func collect(_ count: Int, from queue: Int = 0, seconds: Double = 5) -> [Used] {
    var entries: [Used] = []
    let deadline = Deadline(seconds: seconds)
    repeat {
      run()
      mmio.ready(tag: VirtioMMIO.deviceTag, events: EPOLLIN.rawValue)
      entries += takeUsed(queue)
    } while entries.count < count && !deadline.passed
    return entries
  }

  /// Interrupts raised since the last call.
  var interrupts: UInt64 { lx_eventfd_take(line.descriptor) }
}

func isReadable(_ descriptor: CInt) -> Bool {
  var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
  return unsafe poll(&entry, 1, 0) > 0
}

struct Deadline {
  private let end: UInt64
  init(seconds: Double) { end = lx_monotonic_ns() + UInt64(seconds * 1e9) }
  var passed: Bool { lx_monotonic_ns() >= end }
}
