import Devices
import Glibc
import GuestMemory
import Synchronization
import Testing
import VirtioLayout

/// A disk whose requests wait until they are let go, or hurried.
private final class WaitingDisk: Disk {
  private let goes = Atomic(false)
  private let hurries = Atomic(false)
  let isReadOnly = false
  let capacity: UInt64 = 1 << 30

  func letGo() { goes.store(true, ordering: .relaxed) }
  func hurry(_ hurries: Bool) { self.hurries.store(hurries, ordering: .relaxed) }

  private func work(_ nowait: Bool) -> DiskOutcome {
    if nowait { return .wouldBlock }
    while !goes.load(ordering: .relaxed), !hurries.load(ordering: .relaxed) { usleep(1000) }
    return .done
  }

  func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { work(nowait) }
  func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { work(nowait) }
  func flush() -> DiskOutcome { .done }
  func discard(position: UInt64, count: UInt64) -> DiskOutcome { .done }
  func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome { .done }
}

/// What a pause has to wait for is bounded, whatever the guest has asked for.
@Suite("Block requests in flight") struct BlockInFlightTests {
  private let disk = WaitingDisk()
  private let device: BlockDevice
  private let driver: TestDriver

  init() throws {
    device = try BlockDevice(disk: disk, serial: "test-disk", workerCount: 2)
    driver = try TestDriver(device, memory: try GuestMemory(size: 16 << 20))
    driver.start(size: 64)
    driver.poke(BlockRequestHeader(type: BlockRequestType.write, sector: 0), at: TestDisk.header(0))
    for slot in 0..<16 as Range<UInt64> {
      let header = Buffer.readable(TestDisk.header(0), 16)
      driver.add(0, [header, .readable(4 << 20, 4 << 20), .writable(TestDisk.status(slot), 1)])
    }
    driver.kick()
  }

  @Test func pause_takesWhatIsInFlight_andTheRestComesAfterIt() {
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
