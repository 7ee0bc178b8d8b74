import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import StateCodec
import Testing
import VirtioLayout

private let data = TestDriver.buffers

/// One instance of a device, with what drives it.
struct Subject {
  let device: any MachineDevice
  var driver: TestDriver?
  /// Takes the device from power-on to the middle of its work.
  let begin: () -> Void
  /// Does the rest of the work and says what came of it.
  let finish: () -> String
  /// Looks at the device after a restore as a running machine would.
  var touch: () -> Void = {}
  var end: () -> Void = {}

  init(virtio driver: TestDriver, begin: @escaping () -> Void, finish: @escaping () -> String) {
    device = driver.mmio
    self.driver = driver
    self.begin = begin
    self.finish = finish
    touch = {
      driver.mmio.resume()
      driver.run()
      driver.mmio.ready(tag: VirtioMMIO.deviceTag, events: EPOLLIN.rawValue)
    }
  }

  init(device: any MachineDevice, begin: @escaping () -> Void, finish: @escaping () -> String) {
    self.device = device
    self.begin = begin
    self.finish = finish
  }

  func saved(quiescing: Bool = true) -> [UInt8] {
    if quiescing { device.quiesce() }
    var writer = StateWriter()
    device.save(to: &writer)
    return writer.bytes
  }

  func restore(_ bytes: [UInt8]) throws(StateError) {
    var reader = StateReader(bytes)
    try device.restore(from: &reader)
    guard reader.remaining == 0 else { throw .trailingBytes(section: 0) }
  }
}

/// A kind of device, and where in its work it is saved.
struct SaveRestoreCase: CustomTestStringConvertible, Sendable {
  let testDescription: String
  let make: @Sendable (GuestMemory) throws -> Subject

  init(_ description: String, _ make: @escaping @Sendable (GuestMemory) throws -> Subject) {
    testDescription = description
    self.make = make
  }

  static let all = [
    SaveRestoreCase("rng: three buffers used, four offered without a notification") { memory in
      let driver = try TestDriver(Entropy(), memory: memory)
      return Subject(
        virtio: driver,
        begin: {
          driver.start(CommonFeature.eventIndex)
          for index in 0..<3 as Range<UInt64> { driver.add(0, [.writable(data + 64 * index, 64)]) }
          driver.kick()
          _ = driver.takeUsed()
          for index in 3..<7 as Range<UInt64> { driver.add(0, [.writable(data + 64 * index, 64)]) }
        },
        finish: {
          driver.run()
          return "\(driver.takeUsed()) \(driver.status) \(driver.read(MMIORegister.interruptStatus))"
        })
    },
    SaveRestoreCase("rng: in need of a reset") { memory in
      let driver = try TestDriver(Entropy(), memory: memory)
      return Subject(
        virtio: driver,
        begin: {
          driver.start()
          driver.offer(0xffff)
          driver.kick()
        },
        finish: {
          driver.kick()
          let broken = "\(driver.needsReset) \(driver.usedIndexes)"
          driver.start()
          driver.add(0, [.writable(data, 16)])
          driver.kick()
          return "\(broken) \(driver.takeUsed())"
        })
    },
    SaveRestoreCase("rng: in the middle of its set-up") { memory in
      let driver = try TestDriver(Entropy(), memory: memory)
      return Subject(
        virtio: driver,
        begin: {
          driver.negotiate(CommonFeature.indirectDescriptors)
          driver.queues = [DriverQueue(index: 0, size: 8)]
          driver.write(MMIORegister.queueSelect, 0)
          driver.write(MMIORegister.queueSize, 8)
          driver.write(MMIORegister.queueDescriptorLow, 0x1_0000)
          driver.write(MMIORegister.queueDriverLow, 0x1_1000)
        },
        finish: {
          driver.write(MMIORegister.queueDeviceLow, 0x1_2000)
          driver.write(MMIORegister.queueReady, 1)
          driver.setStatus(driver.status | DeviceStatus.driverOK)
          driver.add(0, [.writable(data, 16)])
          driver.kick()
          return "\(driver.takeUsed())"
        })
    },
    SaveRestoreCase("net: a frame taken and not delivered, another offered to a full host") { memory in
      let backend = try MemoryBackend()
      let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]), memory: memory)
      return Subject(
        virtio: driver,
        begin: {
          driver.start(NetFeature.mergeableBuffers | CommonFeature.eventIndex, size: 16, queueCount: 2)
          driver.add(0, [.writable(data, 40)])
          backend.deliver([UInt8](repeating: 0x42, count: 100))
          driver.kick(0)
          backend.isFull = true
          driver.fill(data + 0x1000, 12, 0)
          driver.fill(data + 0x100c, 60, 0x24)
          driver.add(1, [.readable(data + 0x1000, 72)])
          driver.kick(1)
        },
        finish: {
          backend.isFull = false
          driver.run()
          driver.mmio.ready(tag: VirtioMMIO.deviceTag, events: EPOLLOUT.rawValue)
          driver.add(0, [.writable(data + 0x2000, 100)])
          driver.kick(0)
          return "\(driver.takeUsed(0)) \(driver.takeUsed(1)) \(backend.sent.map(\.frame)) "
            + "\(driver.bytes(data, 40)) \(driver.bytes(data + 0x2000, 72))"
        })
    },
    SaveRestoreCase("net: in need of a reset, with a frame half spread over buffers") { memory in
      let backend = try MemoryBackend()
      let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]), memory: memory)
      let features = NetFeature.mergeableBuffers | CommonFeature.eventIndex
      return Subject(
        virtio: driver,
        begin: {
          driver.start(features, size: 16, queueCount: 2)
          driver.add(0, [.writable(data, 40)])
          driver.offer(0xffff)
          backend.deliver([UInt8](repeating: 0x42, count: 100))
          driver.kick(0)
        },
        finish: {
          let broken = "\(driver.needsReset) \(driver.usedIndexes)"
          driver.start(features, size: 16, queueCount: 2)
          driver.add(0, [.writable(data + 0x2000, 200)])
          backend.deliver([UInt8](repeating: 0x43, count: 60))
          driver.kick(0)
          return "\(broken) \(driver.takeUsed(0)) \(driver.bytes(data + 0x2000, 72))"
        })
    },
    SaveRestoreCase("blk: requests with the workers, others not looked at") { memory in
      let disk = try TestDisk(sectors: 64)
      let driver = try TestDriver(disk.device, memory: memory)
      var subject = Subject(
        virtio: driver,
        begin: {
          driver.start(size: 32)
          for slot in 0..<6 as Range<UInt64> {
            let read = slot % 2 == 0
            disk.add(
              driver, read ? BlockRequestType.read : BlockRequestType.flush, sector: slot, count: read ? 512 : 0,
              slot: slot)
            if slot == 3 {
              driver.write(MMIORegister.queueNotify, 0)
              driver.mmio.ready(tag: 0, events: 1)
            }
          }
        },
        finish: {
          let used = driver.collect(6).map { "\($0.head):\($0.written)" }.sorted()
          let statuses = (0..<6).map { driver.peek(UInt8.self, at: TestDisk.status($0)) }
          return "\(used) \(statuses) \(driver.bytes(TestDisk.data(4), 512))"
        })
      subject.end = { disk.device.shutDown() }
      return subject
    },
    SaveRestoreCase("serial: input waiting, interrupts enabled") { _ in
      let serial = try Serial8250(line: InterruptLine())
      let sink = MemorySink()
      try serial.attach(to: EventLoop(), sink: sink)
      return Subject(
        device: serial,
        begin: {
          for (offset, value) in [(3, 0x83), (0, 0x34), (1, 0x12), (3, 0x03), (2, 0x01), (4, 0x0b), (1, 3), (7, 0x77)]
            as [(UInt64, UInt64)]
          {
            serial.write(offset: offset, size: 1, value: value)
          }
          _ = serial.receive([1, 2, 3])
        },
        finish: {
          let registers = (1..<8).map { serial.read(offset: $0, size: 1) }
          let input = (0..<4).map { _ in serial.read(offset: 0, size: 1) }
          serial.write(offset: 3, size: 1, value: 0x80)
          let divisor = (0..<2).map { serial.read(offset: $0, size: 1) }
          return "\(registers) \(input) \(divisor)"
        })
    },
    SaveRestoreCase("rtc: a register selected") { _ in
      let rtc = RTC(clock: { 1_700_000_000_000_000_000 })
      return Subject(
        device: rtc, begin: { rtc.write(offset: 0, size: 1, value: 0x09) },
        finish: { "\(rtc.read(offset: 1, size: 1))" })
    },
    SaveRestoreCase("i8042: a parameter awaited") { _ in
      let controller = I8042 { _ in }
      return Subject(
        device: controller,
        begin: {
          controller.write(offset: 4, size: 1, value: 0xaa)
          controller.write(offset: 4, size: 1, value: 0x60)
        },
        finish: {
          let result = controller.read(offset: 0, size: 1)
          controller.write(offset: 0, size: 1, value: 0x47)
          controller.write(offset: 4, size: 1, value: 0x20)
          return "\(result) \(controller.read(offset: 0, size: 1))"
        })
    },
  ]
}

@Suite("Family 18: saved device state", .timeLimit(.minutes(Environment.patience))) struct SaveRestoreTests {
  /// Memory with the same contents.
  private func twin(_ memory: GuestMemory) throws -> GuestMemory {
    let copy = try GuestMemory(size: memory.size)
    try copy.write(contents(memory), at: 0)
    return copy
  }

  /// A device restored into a fresh machine does the same as the one that was saved and went on.
  @Test(arguments: SaveRestoreCase.all)
  func state_restoredElsewhere_goesOnTheSame(of kind: SaveRestoreCase) throws {
    let memory = try GuestMemory(size: 4 << 20)
    let original = try kind.make(memory)
    defer { original.end() }
    original.begin()
    let state = original.saved()
    let copy = try twin(memory)
    let restored = try kind.make(copy)
    defer { restored.end() }
    try restored.restore(state)
    #expect(restored.saved() == state)
    restored.driver?.queues = original.driver?.queues ?? []
    original.device.resume()
    restored.device.resume()
    let expected = original.finish()
    #expect(restored.finish() == expected)
    #expect(!expected.isEmpty)
  }

  @Test(arguments: SaveRestoreCase.all)
  func state_ofAFreshDevice_roundTrips(of kind: SaveRestoreCase) throws {
    let first = try kind.make(GuestMemory(size: 4 << 20))
    let second = try kind.make(GuestMemory(size: 4 << 20))
    defer {
      first.end()
      second.end()
    }
    let state = first.saved()
    second.begin()
    try second.restore(state)
    #expect(second.saved() == state)
  }

  @Test(arguments: SaveRestoreCase.all)
  func state_everyTruncation_isRefused(of kind: SaveRestoreCase) throws {
    let memory = try GuestMemory(size: 4 << 20)
    let subject = try kind.make(memory)
    defer { subject.end() }
    subject.begin()
    let state = subject.saved()
    for count in 0..<state.count {
      #expect(throws: StateError.self) { try subject.restore(Array(state.prefix(count))) }
    }
    #expect(throws: StateError.self) { try subject.restore(state + [0]) }
  }

  /// One byte changed: refused, or taken for what it says. Nothing traps then or when the machine goes on.
  @Test(arguments: SaveRestoreCase.all)
  func state_everyByteCorrupted_isRefusedOrKept(of kind: SaveRestoreCase) throws {
    let memory = try GuestMemory(size: 4 << 20)
    let subject = try kind.make(memory)
    defer { subject.end() }
    subject.begin()
    let state = subject.saved()
    for index in state.indices {
      for change in [0x01, 0x02, 0x10, 0x40, 0x80, 0xff] as [UInt8] {
        var corrupted = state
        corrupted[index] ^= change
        do throws(StateError) {
          try subject.restore(corrupted)
          let kept = subject.saved(quiescing: false) == corrupted
          #expect(kept, "byte \(index) ^ \(change) was changed silently")
          subject.touch()
        } catch {}
      }
    }
    // None of it has left the device unusable.
    try subject.restore(state)
    #expect(subject.saved() == state)
  }

  @Test func state_ofAnotherDevice_isRefused() throws {
    let net = try TestDriver(NetDevice(backend: MemoryBackend(), mac: [2, 0, 0, 0, 0, 1]))
    let entropy = try TestDriver(Entropy())
    var writer = StateWriter()
    net.mmio.save(to: &writer)
    var reader = StateReader(writer.bytes)
    #expect(throws: StateError.self) { try entropy.mmio.restore(from: &reader) }
    #expect(entropy.status == 0)
  }

  /// Its guest has known the address since it booted, whatever the new card was given.
  @Test func card_keepsTheAddressOfItsState() throws {
    let (old, new) = ([2, 0, 0, 0, 0, 1] as [UInt8], [2, 0, 0, 0, 0, 2] as [UInt8])
    let first = try TestDriver(NetDevice(backend: MemoryBackend(), mac: old))
    let card = NetDevice(backend: try MemoryBackend(), mac: new)
    let second = try TestDriver(card)
    var writer = StateWriter()
    first.mmio.save(to: &writer)
    var reader = StateReader(writer.bytes)
    try second.mmio.restore(from: &reader, isTrial: true)
    #expect(Array(card.configuration.prefix(6)) == new, "a trial changes nothing")
    reader = StateReader(writer.bytes)
    try second.mmio.restore(from: &reader)
    #expect(Array(card.configuration.prefix(6)) == old)
  }

  /// A disk request in flight is finished by who quiesces, and its answer is in memory.
  @Test func quiesce_finishesDiskRequestsInFlight() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    for _ in 0..<50 {
      driver.start(size: 32)
      for slot in 0..<8 as Range<UInt64> { disk.add(driver, BlockRequestType.flush, sector: 0, slot: slot) }
      expectWritesMarked(driver.memory) {
        driver.kick()
        driver.mmio.quiesce()
      }
      #expect(driver.takeUsed().count == 8)
      let before = contents(driver.memory)
      driver.mmio.ready(tag: VirtioMMIO.deviceTag, events: 1)
      #expect(changedPages(before, contents(driver.memory)).subtracting([Int(driver.queues[0].used / 4096)]).isEmpty)
    }
  }

  /// A driver had the device before: that it resets it at its end is no sign of a kernel without drivers.
  @Test func restoredDevice_wasDriven() throws {
    let memory = try GuestMemory(size: 4 << 20)
    let old = try TestDriver(RecordingDevice(), memory: memory)
    old.start()
    var writer = StateWriter()
    old.mmio.save(to: &writer)
    let new = try TestDriver(RecordingDevice(), memory: memory)
    var reader = StateReader(writer.bytes)
    try new.mmio.restore(from: &reader, isTrial: true)
    #expect(!new.mmio.wasDriven)
    reader = StateReader(writer.bytes)
    try new.mmio.restore(from: &reader)
    new.write(MMIORegister.status, 0)
    #expect(new.mmio.wasDriven && new.mmio.status == 0)
  }

  /// Neither a notification that was not looked at nor an interrupt that was not taken is lost with the old machine.
  @Test func resume_repeatsNotificationsAndInterrupts() throws {
    let memory = try GuestMemory(size: 4 << 20)
    let old = try TestDriver(RecordingDevice(), memory: memory)
    old.start()
    old.add(0, [.writable(data, 16)])
    old.kick()
    old.add(0, [.writable(data, 16)])
    var writer = StateWriter()
    old.mmio.save(to: &writer)
    let new = try TestDriver(RecordingDevice(), memory: memory)
    var reader = StateReader(writer.bytes)
    try new.mmio.restore(from: &reader)
    new.queues = old.queues
    _ = new.interrupts
    new.mmio.resume()
    #expect(new.interrupts == 1)
    #expect(new.read(MMIORegister.interruptStatus) == 1)
    new.run()
    #expect(new.takeUsed().count == 2)
  }
}
