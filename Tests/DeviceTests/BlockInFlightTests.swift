import CLinux
import Devices
import GuestMemory
import Harness
import StateCodec
import Synchronization
import Testing
import VirtioLayout

/// A disk whose requests wait until they are let go, or hurried. Reads as sevens.
private final class WaitingDisk: Disk {
  /// An eventfd, readable while requests are let go or hurried.
  private let gate = lx_eventfd(0)
  private let goes: Atomic<Bool>
  private let count = Atomic(0)
  /// Whether it can be hurried.
  private let canHurry = Atomic(true)
  let isReadOnly = false
  let capacity: UInt64 = 1 << 30

  init(goes: Bool = false) {
    self.goes = Atomic(goes)
    if goes { lx_eventfd_signal(gate) }
  }

  deinit { lx_close(gate) }

  /// How many requests it has done.
  var done: Int { count.load(ordering: .acquiring) }
  func letGo() {
    goes.store(true, ordering: .relaxed)
    lx_eventfd_signal(gate)
  }
  func hurry(_ hurries: Bool) {
    guard canHurry.load(ordering: .relaxed), !goes.load(ordering: .relaxed) else { return }
    if hurries { lx_eventfd_signal(gate) } else { _ = lx_eventfd_take(gate) }
  }
  func takeItsTime() { canHurry.store(false, ordering: .relaxed) }

  private func work(_ nowait: Bool) -> DiskOutcome {
    if nowait { return .wouldBlock }
    HostThread.waitReadable(gate)
    count.add(1, ordering: .releasing)
    return .done
  }

  func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome {
    guard work(nowait) == .done else { return .wouldBlock }
    let sevens = [UInt8](repeating: 7, count: Int(count))
    unsafe sevens.withUnsafeBytes { _ = unsafe memory.scatter($0, to: buffers) }
    return .done
  }
  func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { work(nowait) }
  func flush() -> DiskOutcome { .done }
  func discard(position: UInt64, count: UInt64) -> DiskOutcome { .done }
  func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome { .done }
}

/// Who goes on from another's state, with a disk of its own.
private struct Survivor {
  let disk: WaitingDisk
  let device: BlockDevice
  let driver: TestDriver

  /// - Parameter prepare: what happens to its memory before it takes the state in.
  init(
    of other: TestDriver, disk: WaitingDisk = WaitingDisk(goes: true), _ state: [UInt8],
    prepare: (TestDriver) -> Void = { _ in }
  ) throws {
    self.disk = disk
    device = try BlockDevice(disk: disk, serial: "test-disk", workerCount: 2)
    try device.start()
    driver = try TestDriver(device, memory: try GuestMemory(size: other.memory.size))
    try driver.memory.write(contents(other.memory), at: 0)
    driver.queues = other.queues
    prepare(driver)
    var reader = StateReader(state)
    try driver.mmio.restore(from: &reader)
  }
}

private func state(of driver: TestDriver) -> [UInt8] {
  var writer = StateWriter()
  driver.mmio.save(to: &writer)
  return writer.bytes
}

/// What who drains has to wait for is bounded, whatever the guest has asked for.
@Suite("Block requests in flight") struct BlockInFlightTests {
  private let disk = WaitingDisk()
  private let device: BlockDevice
  private let driver: TestDriver

  init() throws {
    device = try BlockDevice(disk: disk, serial: "test-disk", workerCount: 2)
    try device.start()
    driver = try TestDriver(device, memory: try GuestMemory(size: 16 << 20))
    driver.start(size: 64)
    driver.poke(BlockRequestHeader(type: BlockRequestType.write, sector: 0), at: TestDisk.header(0))
    for slot in 0..<16 as Range<UInt64> {
      let header = Buffer.readable(TestDisk.header(0), 16)
      driver.add(0, [header, .readable(4 << 20, 4 << 20), .writable(TestDisk.status(slot), 1)])
    }
    driver.kick()
  }

  @Test func quiesce_takesWhatIsInFlight_andTheRestComesAfterIt() {
    defer { device.shutDown() }
    #expect(driver.takeUsed().isEmpty)
    driver.mmio.quiesce()
    let done = driver.takeUsed().count
    #expect((4...5).contains(done), "16 MiB, and the request with which that is reached")
    disk.letGo()
    driver.mmio.resume()
    #expect(driver.collect(16 - done).count == 16 - done)
  }

  @Test func ends_bringTheNext_withoutANotification() {
    defer { device.shutDown() }
    disk.letGo()
    #expect(driver.collect(16).count == 16)
  }

  /// What was in flight is more than is taken at once.
  @Test func whoRestores_isHeldBackToo() throws {
    defer { device.shutDown() }
    let survivor = try Survivor(of: driver, disk: WaitingDisk(), state(of: driver))
    defer { survivor.device.shutDown() }
    survivor.driver.mmio.resume()
    survivor.driver.run()
    #expect(!survivor.driver.mmio.poll(), "16 MiB are with the workers")
    survivor.disk.letGo()
    #expect(survivor.driver.collect(16).count == 16 && survivor.disk.done == 16)
    disk.letGo()
  }

  /// A secondary looks at a state while its own disk keeps the load of the one before waiting.
  @Test func trial_doesNotWaitForTheDisk() throws {
    defer { device.shutDown() }
    let saved = state(of: driver)
    disk.takeItsTime()
    let isTried = Flag()
    let draining = try HostThread.start(name: "drain") { [driver] in driver.mmio.quiesce() }
    let trying = try HostThread.start(name: "try") { [driver] in
      var reader = StateReader(saved)
      if (try? driver.mmio.restore(from: &reader, isTrial: true)) != nil { isTried.set() }
    }
    #expect(waitUntil { isTried.isSet } && disk.done == 0)
    disk.letGo()
    for thread in [draining, trying] { thread.join() }
  }

  /// The device thread sleeps while nothing more is taken, rather than find the same requests again and again.
  @Test func heldBack_isNothingToPollFor() {
    defer { device.shutDown() }
    #expect(!driver.mmio.poll())
    driver.mmio.rest()
    disk.letGo()
    #expect(driver.collect(16).count == 16)
  }

  @Test func reset_endsWaiting() {
    defer { device.shutDown() }
    driver.start(size: 64)
    #expect(!driver.needsReset)
    disk.letGo()
    #expect(driver.takeUsed().isEmpty)
  }
}

/// State that is taken while requests are in flight: they have not happened yet, and whoever takes it in does them.
@Suite("Block requests in flight at a cut") struct BlockCutTests {
  private let disk = WaitingDisk()
  private let device: BlockDevice
  private let driver: TestDriver

  init() throws {
    device = try BlockDevice(disk: disk, serial: "test-disk", workerCount: 2)
    try device.start()
    driver = try TestDriver(device, memory: try GuestMemory(size: 4 << 20))
    driver.start(CommonFeature.eventIndex, size: 64)
  }

  private func add(_ type: UInt32, _ slots: Range<UInt64>) {
    for slot in slots {
      driver.poke(BlockRequestHeader(type: type, sector: 0), at: TestDisk.header(slot))
      driver.poke(0xee as UInt8, at: TestDisk.status(slot))
      let data = Buffer(address: TestDisk.data(slot), length: 512, writable: type == BlockRequestType.read)
      driver.add(0, [.readable(TestDisk.header(slot), 16), data, .writable(TestDisk.status(slot), 1)])
    }
  }

  @Test(arguments: [BlockRequestType.read, BlockRequestType.write]) func whoRestores_doesThemAgain(type: UInt32) throws
  {
    defer { device.shutDown() }
    // Five are in flight, and one was not even looked at.
    add(type, 0..<5)
    driver.kick()
    add(type, 5..<6)
    let cut = state(of: driver)
    let survivor = try Survivor(of: driver, cut)
    defer { survivor.device.shutDown() }
    let other = survivor.driver
    #expect(state(of: other) == cut, "nothing is lost when it is saved again before it is at work")
    #expect(survivor.disk.done == 0, "not before the machine goes on")
    other.mmio.resume()
    let used = other.collect(6)
    #expect(used.count == 6 && Set(used.map(\.head)).count == 6 && survivor.disk.done == 6)
    for slot in 0..<6 as Range<UInt64> {
      #expect(other.peek(UInt8.self, at: TestDisk.status(slot)) == BlockStatus.ok)
      #expect(other.bytes(TestDisk.data(slot), 512).allSatisfy { $0 == (type == BlockRequestType.read ? 7 : 0) })
    }
    // And who saved goes on with its own.
    disk.letGo()
    driver.kick()
    #expect(driver.collect(6).count == 6 && disk.done == 6)
  }

  /// The worker may have put it there, and marked it, before the pages were harvested of which the guest knows nothing.
  @Test func whatWasRead_isMarkedWhenTheGuestGetsToKnow() {
    defer { device.shutDown() }
    add(BlockRequestType.read, 0..<1)
    driver.kick()
    disk.letGo()
    let sevens = [UInt8](repeating: 7, count: 512)
    #expect(waitUntil { driver.bytes(TestDisk.data(0), 512) == sevens })
    device.shutDown()
    _ = harvest(driver.memory)
    #expect(driver.collect(1).count == 1)
    #expect(harvest(driver.memory).contains(Int(TestDisk.data(0) / GuestMemory.pageSize)))
  }

  @Test func reset_forgetsWhatWasToBeDoneAgain() throws {
    defer { device.shutDown() }
    add(BlockRequestType.write, 0..<5)
    driver.kick()
    var reader = StateReader(state(of: driver))
    disk.letGo()
    try driver.mmio.restore(from: &reader)
    let done = disk.done
    driver.start(size: 64)
    driver.mmio.resume()
    driver.run()
    #expect(driver.takeUsed().isEmpty && disk.done == done)
  }

  @Test func requestSpoiltMeanwhile_costsThatDeviceAReset() throws {
    defer { device.shutDown() }
    add(BlockRequestType.write, 0..<5)
    driver.kick()
    let survivor = try Survivor(of: driver, state(of: driver)) { other in
      other.describe(other.queues[0].chains.keys.sorted()[2], 1 << 40, 512)
    }
    defer { survivor.device.shutDown() }
    let other = survivor.driver
    other.mmio.resume()
    other.run()
    #expect(other.needsReset)
    // And it can be saved and taken in like that.
    let broken = state(of: other)
    var reader = StateReader(broken)
    try other.mmio.restore(from: &reader)
    #expect(state(of: other) == broken && other.needsReset)
    other.start(size: 64)
    #expect(!other.needsReset)
    disk.letGo()
  }

  /// Of a snapshot that was made before requests in flight were saved.
  @Test func stateOfVersion1_hasNone() throws {
    defer { device.shutDown() }
    let saved = state(of: driver)
    var old = saved
    old.removeSubrange(saved.count - 10 - 32..<saved.count - 10)
    old[4] = 1
    old[6] = UInt8(saved.count - 10 - 32)
    var reader = StateReader(old)
    try driver.mmio.restore(from: &reader)
    #expect(reader.remaining == 0 && state(of: driver) == saved)
  }

  /// Only a request that may be done twice is: a state that says so of another device is nobody's.
  @Test func requestInFlight_ofADeviceThatRepeatsNothing_isRefused() throws {
    defer { device.shutDown() }
    let entropy = try TestDriver(Entropy())
    entropy.start(size: 64)
    var saved = state(of: entropy)
    // The last field of the only queue, before the device's own section of 4 + 2 + 4 bytes.
    saved[saved.count - 10 - 32] |= 1
    var reader = StateReader(saved)
    #expect(throws: StateError.self) { try entropy.mmio.restore(from: &reader) }
    // Nor one that the queue has no place for.
    saved = state(of: driver)
    saved[saved.count - 10 - 32 + 8] |= 1
    reader = StateReader(saved)
    #expect(throws: StateError.self) { try driver.mmio.restore(from: &reader) }
    saved[saved.count - 10 - 32 + 8] = 0
    reader = StateReader(saved)
    try driver.mmio.restore(from: &reader)
  }
}
