import Devices
import Glibc
import GuestMemory
import Harness
import Testing
import VirtioLayout

private let data = TestDriver.buffers
private let write = VirtqueueDescriptor.write

@Suite("Family 11: notify") struct NotifyTests {
  let device = RecordingDevice(queueCount: 2)
  let driver: TestDriver

  init() throws { driver = try TestDriver(device) }

  @Test func notify_beforeDriverOK_isCountedAndDoesNothing() {
    driver.negotiate()
    driver.queues = [DriverQueue(index: 0, size: 8)]
    driver.setUpQueue(0, size: 8)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(device.seen.isEmpty)
    #expect(driver.usedIndexes == [0])
    #expect(driver.mmio.mistakes[.notify] == 1)
    // What was made available before DRIVER_OK is found without a further notification.
    driver.setStatus(driver.status | DeviceStatus.driverOK)
    driver.run()
    #expect(driver.takeUsed().count == 1)
  }

  @Test func notify_afterReset_isCountedAndDoesNothing() {
    driver.start(queueCount: 2)
    driver.add(0, [.writable(data, 16)])
    driver.reset()
    driver.kick()
    #expect(driver.usedIndexes == [0, 0])
    #expect(driver.mmio.mistakes[.notify] == 1)
    expectUsable(driver)
  }

  @Test func notify_pendingWhenReset_isForgotten() {
    driver.start(queueCount: 2)
    driver.write(MMIORegister.queueNotify, 0)
    driver.reset()
    #expect(!isReadable(driver.mmio.notifyDescriptors[0]))
  }

  @Test(arguments: [2, 3, 0x100, 0x7fff_ffff, 0xffff_ffff] as [UInt32])
  func notify_queueOutOfRange_isCounted(queue: UInt32) {
    driver.start(queueCount: 2)
    driver.write(MMIORegister.queueNotify, queue)
    driver.run()
    #expect(driver.mmio.mistakes[.notify] == 1)
    #expect(!driver.needsReset)
  }

  @Test func notify_storm_costsOneVisit() {
    driver.start(queueCount: 2)
    driver.add(0, [.writable(data, 16)])
    for _ in 0..<100_000 { driver.write(MMIORegister.queueNotify, 0) }
    driver.mmio.ready(tag: 0, events: 1)
    #expect(!isReadable(driver.mmio.notifyDescriptors[0]))
    #expect(driver.takeUsed().count == 1)
  }

  @Test func notify_queueNotReady_doesNothing() {
    driver.negotiate()
    driver.setStatus(driver.status | DeviceStatus.driverOK)
    driver.kick(1)
    #expect(device.seen.isEmpty)
    expectUsable(driver)
  }
}

@Suite("Family 12: reset") struct ResetTests {
  @Test func reset_withRequestsInFlight_nothingCompletesAfterwards() throws {
    let disk = try TestDisk(sectors: 4096)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    for _ in 0..<50 {
      driver.start(size: 64)
      for index in 0..<16 as Range<UInt64> {
        disk.add(driver, BlockRequestType.flush, sector: 0, slot: index)
        disk.add(driver, BlockRequestType.read, sector: index, count: 512, slot: index + 16)
      }
      driver.write(MMIORegister.queueNotify, 0)
      driver.mmio.ready(tag: 0, events: 1)
      driver.reset()
      let before = contents(driver.memory)
      driver.mmio.ready(tag: VirtioMMIO.deviceTag, events: 1)
      driver.kick()
      usleep(200)  // nothing tells that no worker writes any more: one that did would most likely do so now
      #expect(changedPages(before, contents(driver.memory)).isEmpty)
      #expect(driver.read(MMIORegister.interruptStatus) == 0)
    }
    driver.start()
    #expect(disk.run(driver, BlockRequestType.flush, sector: 0) == BlockStatus.ok)
  }

  @Test func reset_twice_isHarmless() throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start()
    driver.reset()
    driver.reset()
    #expect(driver.status == 0)
    #expect(driver.mmio.mistakes.total == 0)
    expectUsable(driver)
  }

  @Test func reset_clearsEverythingTheDriverSet() throws {
    let driver = try TestDriver(RecordingDevice(queueCount: 2))
    driver.start(CommonFeature.eventIndex, queueCount: 2)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.read(MMIORegister.interruptStatus) == 1)
    driver.reset()
    #expect(driver.read(MMIORegister.interruptStatus) == 0)
    driver.negotiate()
    for queue in 0..<2 as Range<UInt32> {
      driver.write(MMIORegister.queueSelect, queue)
      #expect(driver.read(MMIORegister.queueReady) == 0)
      // Neither size nor addresses survive: ready alone must not be enough.
      driver.write(MMIORegister.queueReady, 1)
      #expect(driver.read(MMIORegister.queueReady) == 0)
    }
  }

  @Test func reset_ofFramesInFlight_newDriverSeesNone() throws {
    let backend = try MemoryBackend()
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(NetFeature.mergeableBuffers, queueCount: 2)
    // The card has taken the frame and waits for a second buffer.
    backend.deliver(Array(repeating: 0x55, count: 60))
    driver.add(0, [.writable(data, 20)])
    driver.kick(0)
    #expect(backend.waiting == 0)
    driver.reset()
    driver.start(queueCount: 2)
    driver.add(0, [.writable(data, 2048)])
    driver.kick(0)
    #expect(driver.takeUsed(0).isEmpty)
  }

  /// One vCPU resets while the device thread works and another notifies: nothing is written outside the ring protocol,
  /// and the device comes back. The time is bounded.
  @Test(.timeLimit(.minutes(Environment.patience))) func reset_fromAnotherVCPU_whileWorking() throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start(size: 64)
    let thread = try HostThread.start(name: "device") { driver.loop.run() }
    let stop = Flag()
    let notifier = try HostThread.start(name: "vcpu1") {
      while !stop.isSet { driver.mmio.write(offset: MMIORegister.queueNotify, size: 4, value: 0) }
    }
    for _ in 0..<300 {
      driver.negotiate()
      driver.queues = [DriverQueue(index: 0, size: 64)]
      driver.fill(driver.queues[0].descriptors, 0x3000, 0)
      driver.setUpQueue(0, size: 64)
      driver.setStatus(driver.status | DeviceStatus.driverOK)
      for index in 0..<32 as Range<UInt64> { driver.add(0, [.writable(data + 4096 * index, 16)]) }
      driver.reset()
      // After the reset returns, the rings are the driver's again.
      let index: UInt16 = driver.peek(at: driver.queues[0].used + 2)
      driver.fill(driver.queues[0].used, 70, 0xee)
      #expect(index <= 32)
      #expect(driver.bytes(driver.queues[0].used, 70).allSatisfy { $0 == 0xee })
    }
    stop.set()
    notifier.join()
    driver.loop.stop()
    thread.join()
    expectUsable(driver)
  }
}
