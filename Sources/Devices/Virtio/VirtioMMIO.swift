internal import CLinux
public import GuestMemory
internal import Synchronization
internal import VirtioLayout

/// The virtio-mmio v2 transport (virtio 1.2 §4.2): status machine, queue registers, notifications and the interrupt of
/// one device. It alone decides when a queue may be touched.
///
/// Registers are accessed on vCPU threads, queues are worked on by the device thread; one lock covers both, but for the
/// interrupt status, which every guest interrupt reads and which is a plain atomic.
public final class VirtioMMIO: BusDevice, MachineDevice, EventHandler {
  /// Tags at and above this are the device's own descriptors; below are queue numbers.
  public static let deviceTag: UInt32 = 0x100

  public let name: String
  public let mistakes = MistakeCounters()
  /// One eventfd a queue: KVM signals it when the guest writes that queue's number to QueueNotify (ioeventfd).
  public let notifyDescriptors: [CInt]

  let device: any VirtioDevice
  let memory: GuestMemory
  let interrupt: VirtioInterrupt
  let offered: UInt64
  let driven = Atomic<Bool>(false)
  let state: Mutex<Registers>

  struct Registers: Sendable {
    var status: UInt32 = 0
    var deviceFeaturesSelect: UInt32 = 0
    var driverFeaturesSelect: UInt32 = 0
    var driverFeatures: UInt64 = 0
    var queueSelect: UInt32 = 0
    var configGeneration: UInt32 = 0
    var queues: QueueSet
  }

  /// - Parameters:
  ///   - name: unique in the machine, such as "blk0".
  ///   - line: the device's interrupt, already routed.
  public init(
    name: String, device: any VirtioDevice, memory: GuestMemory, line: InterruptLine, loop: EventLoop
  ) throws(HostError) {
    self.name = name
    self.device = device
    self.memory = memory
    interrupt = VirtioInterrupt(line: line)
    offered =
      device.features | CommonFeature.version1 | CommonFeature.eventIndex | CommonFeature.indirectDescriptors
    state = Mutex(
      Registers(
        queues: QueueSet(memory: memory, count: device.queueCount, interrupt: interrupt, mistakes: mistakes)))
    var descriptors: [CInt] = []
    for _ in 0..<device.queueCount {
      let fd = lx_eventfd(0)
      guard fd >= 0 else {
        for descriptor in descriptors { lx_close(descriptor) }
        notifyDescriptors = []
        throw HostError(operation: "eventfd", errno: -fd)
      }
      descriptors.append(fd)
    }
    notifyDescriptors = descriptors
    for (queue, descriptor) in descriptors.enumerated() {
      _ = try loop.register(descriptor, events: EPOLLIN.rawValue, handler: self, tag: UInt32(queue))
    }
    try device.attach(to: loop, handler: self)
  }

  deinit {
    for descriptor in notifyDescriptors { lx_close(descriptor) }
  }

  public func start() throws(HostError) { try device.start() }

  // MARK: Device thread

  public func ready(tag: UInt32, events: UInt32) {
    if tag < Self.deviceTag {
      let queue = Int(tag)
      guard lx_eventfd_take(notifyDescriptors[queue]) != 0 else { return }
      let again = withQueues { queues in
        guard queues.isUsable(queue) else {
          mistakes.add(.notify)
          return false
        }
        return device.process(queue: queue, &queues)
      }
      // Its share is used up: let others have the thread first.
      if again { lx_eventfd_signal(notifyDescriptors[queue]) }
    } else {
      let next = withQueues { device.event(tag: tag, events: events, &$0) }
      if let next { lx_eventfd_signal(notifyDescriptors[next]) }
    }
  }

  public var polls: Bool { device.polls }

  public func poll() -> Bool {
    withQueues { queues in
      queues.watched = queues.running
      var worked = false
      for queue in 0..<device.queueCount where queues.hasPending(queue) {
        // What its share leaves is found the next time.
        _ = device.process(queue: queue, &queues)
        worked = true
      }
      return worked
    }
  }

  public func rest() {
    withQueues { queues in
      queues.watched = false
      for queue in 0..<device.queueCount where queues.isUsable(queue) {
        if device.process(queue: queue, &queues) { lx_eventfd_signal(notifyDescriptors[queue]) }
      }
    }
  }

  /// Runs `body` on the queues and, when it met a broken ring, stops the device until the driver resets it.
  func withQueues<R: Sendable>(_ body: (inout QueueSet) -> R) -> R {
    state.withLock { state in
      let failed = state.queues.failure != nil
      let result = body(&state.queues)
      if !failed, state.queues.failure != nil { needReset(&state) }
      return result
    }
  }

  /// virtio 1.2 §2.1.2: the device is in error and says so; only a reset helps.
  private func needReset(_ state: inout Registers) {
    mistakes.add(.chain)
    state.status |= DeviceStatus.needsReset
    if state.status & DeviceStatus.driverOK != 0 { interrupt.raise(MMIORegister.configurationInterrupt) }
  }

  // MARK: Registers

  public func read(offset: UInt64, size: Int) -> UInt64 {
    if offset >= MMIORegister.config { return readConfiguration(offset - MMIORegister.config, size: size) }
    guard size == 4, offset % 4 == 0 else {
      mistakes.add(.register)
      return 0
    }
    if offset == MMIORegister.interruptStatus { return UInt64(interrupt.pending) }
    return UInt64(state.withLock { state in readRegister(offset, &state) })
  }

  private func readRegister(_ offset: UInt64, _ state: inout Registers) -> UInt32 {
    switch offset {
    case MMIORegister.magicValue: return MMIORegister.magic
    case MMIORegister.version: return MMIORegister.modernVersion
    case MMIORegister.deviceID: return device.deviceID
    case MMIORegister.vendorID: return 0x4d4d_5653  // "SVMM"
    case MMIORegister.deviceFeatures:
      switch state.deviceFeaturesSelect {
      case 0: return UInt32(truncatingIfNeeded: offered)
      case 1: return UInt32(truncatingIfNeeded: offered >> 32)
      default: return 0
      }
    case MMIORegister.queueSizeMax:
      return Int(state.queueSelect) < device.queueCount ? UInt32(Virtqueue.maximumSize) : 0
    case MMIORegister.queueReady:
      guard Int(state.queueSelect) < device.queueCount else { return 0 }
      return state.queues.queues[Int(state.queueSelect)].ready ? 1 : 0
    case MMIORegister.status: return state.status
    case MMIORegister.configGeneration: return state.configGeneration
    default:
      // Undefined and write-only registers.
      mistakes.add(.register)
      return 0
    }
  }

  private func readConfiguration(_ offset: UInt64, size: Int) -> UInt64 {
    let bytes = device.configuration
    var value: UInt64 = 0
    for index in 0..<UInt64(size) where offset + index < UInt64(bytes.count) {
      value |= UInt64(bytes[Int(offset + index)]) << (8 * index)
    }
    return value
  }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    // No device here has a writable configuration field.
    guard size == 4, offset % 4 == 0, offset < MMIORegister.config else {
      mistakes.add(.register)
      return
    }
    let value = UInt32(truncatingIfNeeded: value)
    switch offset {
    case MMIORegister.interruptACK: interrupt.acknowledge(value)
    case MMIORegister.queueNotify: notify(value)
    default: state.withLock { state in writeRegister(offset, value, &state) }
    }
  }

  /// Without an ioeventfd (or for a queue that has none) the write comes here.
  private func notify(_ queue: UInt32) {
    guard Int(queue) < notifyDescriptors.count else {
      mistakes.add(.notify)
      return
    }
    lx_eventfd_signal(notifyDescriptors[Int(queue)])
  }

  private func writeRegister(_ offset: UInt64, _ value: UInt32, _ state: inout Registers) {
    switch offset {
    case MMIORegister.deviceFeaturesSelect: state.deviceFeaturesSelect = value
    case MMIORegister.driverFeaturesSelect: state.driverFeaturesSelect = value
    case MMIORegister.driverFeatures: writeDriverFeatures(value, &state)
    case MMIORegister.queueSelect: state.queueSelect = value
    case MMIORegister.status: writeStatus(value, &state)
    case MMIORegister.queueSize, MMIORegister.queueReady, MMIORegister.queueDescriptorLow,
      MMIORegister.queueDescriptorHigh, MMIORegister.queueDriverLow, MMIORegister.queueDriverHigh,
      MMIORegister.queueDeviceLow, MMIORegister.queueDeviceHigh:
      writeQueueRegister(offset, value, &state)
    default: mistakes.add(.register)
    }
  }

  private func writeDriverFeatures(_ value: UInt32, _ state: inout Registers) {
    guard state.status & (DeviceStatus.driver | DeviceStatus.featuresOK) == DeviceStatus.driver else {
      mistakes.add(.status)
      return
    }
    switch state.driverFeaturesSelect {
    case 0: state.driverFeatures = state.driverFeatures & ~0xffff_ffff | UInt64(value)
    case 1: state.driverFeatures = state.driverFeatures & 0xffff_ffff | UInt64(value) << 32
    default: if value != 0 { mistakes.add(.register) }
    }
  }

  /// Set-up of the selected queue: possible between FEATURES_OK and DRIVER_OK, and only while the queue is not ready.
  private func writeQueueRegister(_ offset: UInt64, _ value: UInt32, _ state: inout Registers) {
    let index = Int(state.queueSelect)
    let phase = state.status & (DeviceStatus.featuresOK | DeviceStatus.driverOK | DeviceStatus.needsReset)
    guard index < device.queueCount, phase == DeviceStatus.featuresOK else {
      mistakes.add(.queueSetup)
      return
    }
    var queue = state.queues.queues[index]
    guard !queue.ready || (offset == MMIORegister.queueReady && value == 0) else {
      mistakes.add(.queueSetup)
      return
    }
    switch offset {
    case MMIORegister.queueSize:
      guard value <= UInt32(Virtqueue.maximumSize) else { return mistakes.add(.queueSetup) }
      queue.size = UInt16(value)
    case MMIORegister.queueDescriptorLow: setLow(&queue.descriptorTable, value)
    case MMIORegister.queueDescriptorHigh: setHigh(&queue.descriptorTable, value)
    case MMIORegister.queueDriverLow: setLow(&queue.availRing, value)
    case MMIORegister.queueDriverHigh: setHigh(&queue.availRing, value)
    case MMIORegister.queueDeviceLow: setLow(&queue.usedRing, value)
    case MMIORegister.queueDeviceHigh: setHigh(&queue.usedRing, value)
    default:  // QueueReady
      queue.eventIndex = state.queues.features & CommonFeature.eventIndex != 0
      queue.indirect = state.queues.features & CommonFeature.indirectDescriptors != 0
      queue.ready = value == 1
      guard value == 0 || (value == 1 && queue.isWellFormed(in: state.queues.memory)) else {
        return mistakes.add(.queueSetup)
      }
    }
    state.queues.queues[index] = queue
  }

  private func setLow(_ address: inout UInt64, _ value: UInt32) { address = address & ~0xffff_ffff | UInt64(value) }
  private func setHigh(_ address: inout UInt64, _ value: UInt32) {
    address = address & 0xffff_ffff | UInt64(value) << 32
  }

  // MARK: Status machine (virtio 1.2 §3.1.1)

  private func writeStatus(_ value: UInt32, _ state: inout Registers) {
    if value == 0 { return reset(&state) }
    let known =
      DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.driverOK | DeviceStatus.featuresOK
      | DeviceStatus.failed
    let kept = state.status & known
    // Bits are only ever added; NEEDS_RESET is the device's own.
    guard value & known & kept == kept, value & ~(known | DeviceStatus.needsReset) == 0 else {
      return mistakes.add(.status)
    }
    let added = value & known & ~state.status
    if added & DeviceStatus.driver != 0, value & DeviceStatus.acknowledge == 0 { return mistakes.add(.status) }
    if added & DeviceStatus.featuresOK != 0 {
      guard
        value & DeviceStatus.driver != 0, state.driverFeatures & ~offered == 0,
        state.driverFeatures & CommonFeature.version1 != 0
      else {
        // The driver reads the status back and finds FEATURES_OK missing.
        state.status |= added & ~(DeviceStatus.featuresOK | DeviceStatus.driverOK)
        return mistakes.add(.status)
      }
      state.queues.features = state.driverFeatures
    }
    if added & DeviceStatus.driverOK != 0 {
      guard value & DeviceStatus.featuresOK != 0, state.status & DeviceStatus.needsReset == 0 else {
        return mistakes.add(.status)
      }
      state.status |= added
      state.queues.running = true
      driven.store(true, ordering: .relaxed)
      device.activate(features: state.queues.features)
      // Buffers may have been made available before DRIVER_OK.
      for descriptor in notifyDescriptors { lx_eventfd_signal(descriptor) }
      return
    }
    state.status |= added
  }

  private func reset(_ state: inout Registers) {
    device.reset()
    for descriptor in notifyDescriptors { _ = lx_eventfd_take(descriptor) }
    let queues = QueueSet(
      memory: state.queues.memory, count: device.queueCount, interrupt: interrupt, mistakes: mistakes)
    state = Registers(configGeneration: state.configGeneration, queues: queues)
    interrupt.pending = 0
  }

  /// Whether a driver has ever taken the device (DRIVER_OK).
  public var wasDriven: Bool { driven.load(ordering: .relaxed) || status & DeviceStatus.driverOK != 0 }

  /// Driver status bits, for tests and `status`.
  public var status: UInt32 { state.withLock { $0.status } }
}
