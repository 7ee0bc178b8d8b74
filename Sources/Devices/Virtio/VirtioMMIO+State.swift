internal import CLinux
public import StateCodec
internal import Synchronization
internal import VirtioLayout

/// The transport's part in a machine's pause, save and restore: registers, queues and, inside, the device's own state.
extension VirtioMMIO {
  public func quiesce() { withQueues { device.quiesce(&$0) } }

  public func save(to writer: inout StateWriter) {
    state.withLock { state in
      writer.section(sectionTag("vmio"), version: 2) { writer in
        writer.put(device.deviceID)
        writer.put(state.status)
        writer.put(state.deviceFeaturesSelect)
        writer.put(state.driverFeaturesSelect)
        writer.put(state.driverFeatures)
        writer.put(state.queueSelect)
        writer.put(state.configGeneration)
        writer.put(state.queues.features)
        writer.put(interrupt.pending)
        writer.put(UInt32(state.queues.queues.count))
        for queue in state.queues.queues { queue.save(to: &writer) }
        writer.section(sectionTag("vdev"), version: 1) { device.save(to: &$0) }
      }
    }
  }

  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {
    if isTrial {
      // Without the lock, which is held for as long as a disk takes when somebody drains it.
      var nobody = Registers(
        queues: QueueSet(memory: memory, count: device.queueCount, interrupt: interrupt, mistakes: mistakes))
      return try restore(&nobody, from: &reader, isTrial)
    }
    var failure: StateError?
    var input = reader
    state.withLock { state in
      do throws(StateError) { try restore(&state, from: &input, isTrial) } catch { failure = error }
    }
    if let failure { throw failure }
    reader = input
  }

  private func restore(
    _ state: inout Registers, from reader: inout StateReader, _ isTrial: Bool
  ) throws(StateError) {
    try reader.section(sectionTag("vmio"), version: 2) { reader, version throws(StateError) in
      let id = try reader.get(UInt32.self)
      guard id == device.deviceID else { throw .invalid("\(name) is device \(device.deviceID), saved was \(id)") }
      var queues = QueueSet(
        memory: state.queues.memory, count: device.queueCount, interrupt: interrupt, mistakes: mistakes)
      var restored = Registers(queues: queues)
      restored.status = try reader.get()
      restored.deviceFeaturesSelect = try reader.get()
      restored.driverFeaturesSelect = try reader.get()
      restored.driverFeatures = try reader.get()
      restored.queueSelect = try reader.get()
      restored.configGeneration = try reader.get()
      queues.features = try reader.get()
      let pending = try reader.get(UInt32.self)
      guard restored.status & ~Self.statusBits == 0, pending & ~Self.interruptBits == 0 else {
        throw .invalid("\(name): status or interrupt bits that do not exist")
      }
      guard queues.features & ~offered == 0 else { throw .invalid("\(name): features this device does not offer") }
      guard try reader.get(UInt32.self) == UInt32(device.queueCount) else {
        throw .invalid("\(name): another number of queues")
      }
      for index in queues.queues.indices {
        let queue = try Virtqueue.restore(
          from: &reader, version: version, memory: queues.memory, features: queues.features)
        guard !queue.hasInFlight || device.repeatsRequests else { throw .invalid("\(name): a request in flight") }
        queues.queues[index] = queue
      }
      queues.running =
        restored.status & (DeviceStatus.driverOK | DeviceStatus.needsReset) == DeviceStatus.driverOK
      guard !queues.running || restored.status & DeviceStatus.featuresOK != 0 else {
        throw .invalid("\(name): running without features")
      }
      restored.queues = queues
      if !isTrial { device.reset() }
      try reader.section(sectionTag("vdev"), version: 1) { reader, _ throws(StateError) in
        try device.restore(from: &reader, isTrial: isTrial)
      }
      if isTrial { return }
      state = restored
      interrupt.pending = pending
      if queues.running {
        driven.store(true, ordering: .relaxed)
        device.activate(features: queues.features)
      }
    }
  }

  public func resume() {
    let running = state.withLock { state in
      device.resume()
      return state.queues.running
    }
    // A notification may have been lost with the old machine; a visit to an idle queue costs nothing.
    if running { for descriptor in notifyDescriptors { lx_eventfd_signal(descriptor) } }
    interrupt.resend()
  }

  private static let statusBits =
    DeviceStatus.acknowledge | DeviceStatus.driver | DeviceStatus.driverOK | DeviceStatus.featuresOK
    | DeviceStatus.failed | DeviceStatus.needsReset
  private static let interruptBits = MMIORegister.usedBufferInterrupt | MMIORegister.configurationInterrupt
}
