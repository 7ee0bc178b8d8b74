import Devices
import Glibc
import GuestMemory
import Harness
import Testing
import VirtioLayout

private let data = TestDriver.buffers

/// Every byte a device writes is in a page marked dirty: compared with the whole of RAM, before and after.
@Suite("Family 19: device writes mark their pages", .serialized) struct DirtyTrackingTests {
  @Test func dirty_entropyAndUsedRing() throws {
    let driver = try TestDriver(Entropy())
    driver.start(CommonFeature.eventIndex)
    driver.add(0, [.writable(data + 4090, 12)])
    driver.add(0, [.writable(data + 0x10_0000, 4096)])
    let changed = expectWritesMarked(driver.memory) { driver.kick() }
    #expect(changed == [256, 257, 512, Int(driver.queues[0].used / 4096)])
  }

  @Test func dirty_usedFlagsAndEventIndex() throws {
    for features in [0, CommonFeature.eventIndex] {
      let driver = try TestDriver(RecordingDevice())
      driver.start(features)
      for _ in 0..<20 {
        driver.add(0, [.readable(data, 16)])
        expectWritesMarked(driver.memory) { driver.kick() }
        #expect(driver.takeUsed().count == 1)
      }
    }
  }

  @Test func dirty_blockReadOnTheDeviceThread() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start()
    disk.add(driver, BlockRequestType.read, sector: 0, count: 8192)
    let changed = expectWritesMarked(driver.memory) {
      driver.write(MMIORegister.queueNotify, 0)
      #expect(driver.collect(1).count == 1)
    }
    #expect(changed.isSuperset(of: [256, 257, 258]))
  }

  /// Requests that a worker does, and answers, are marked when the answer is visible.
  @Test func dirty_blockRequestsOnWorkers() throws {
    let disk = try TestDisk(sectors: 2048)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start(size: 64)
    for round in 0..<20 as Range<UInt64> {
      let fd = unsafe open(disk.path, O_RDONLY)
      // Out of the page cache, so that reads have to wait.
      _ = fsync(fd)
      _ = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)
      close(fd)
      for slot in 0..<8 as Range<UInt64> {
        driver.fill(TestDisk.data(slot), 4096, UInt8(truncatingIfNeeded: 0x80 + round))
        disk.add(driver, BlockRequestType.read, sector: (slot * 97 + round) % 2000, count: 4096, slot: slot)
      }
      disk.add(driver, BlockRequestType.flush, sector: 0, slot: 8)
      disk.add(driver, BlockRequestType.getID, sector: 0, count: 20, slot: 9)
      expectWritesMarked(driver.memory) {
        driver.write(MMIORegister.queueNotify, 0)
        #expect(driver.collect(10).count == 10)
      }
    }
  }

  /// The driver resets while workers read: what they wrote is in RAM, and has to be in the next checkpoint.
  @Test func dirty_blockReadsThatEndInAReset() throws {
    let disk = try TestDisk(sectors: 2048)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    for round in 0..<20 as Range<UInt64> {
      driver.start(size: 64)
      let fd = unsafe open(disk.path, O_RDONLY)
      _ = fsync(fd)
      _ = posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)
      close(fd)
      for slot in 0..<16 as Range<UInt64> {
        driver.fill(TestDisk.data(slot), 4096, UInt8(truncatingIfNeeded: 0x80 + round))
        disk.add(driver, BlockRequestType.read, sector: (slot * 97 + round) % 2000, count: 4096, slot: slot)
      }
      expectWritesMarked(driver.memory) {
        driver.write(MMIORegister.queueNotify, 0)
        driver.mmio.ready(tag: 0, events: 1)
        driver.reset()
      }
    }
  }

  @Test func dirty_netReceive_mergedOverManyPages() throws {
    let backend = try MemoryBackend()
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(NetFeature.mergeableBuffers, size: 64, queueCount: 2)
    for index in 0..<64 as Range<UInt64> {
      driver.add(0, [.writable(data + 0x3000 * index + 4000, 100), .writable(data + 0x3000 * index + 8190, 1000)])
    }
    for number in 0..<20 { backend.deliver([UInt8](repeating: UInt8(number + 1), count: 60 + number * 300)) }
    let changed = expectWritesMarked(driver.memory) { driver.kick(0) }
    #expect(changed.count > 60)
  }

  /// A frame that finds too few buffers has been written in part, all the same.
  @Test func dirty_netReceive_givenBackBuffers() throws {
    let backend = try MemoryBackend()
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(NetFeature.mergeableBuffers, size: 16, queueCount: 2)
    driver.add(0, [.writable(data, 2000)])
    driver.add(0, [.writable(data + 0x2000, 2000)])
    backend.deliver([UInt8](repeating: 7, count: 9000))
    expectWritesMarked(driver.memory) { driver.kick(0) }
  }

  @Test func dirty_netTransmit_onlyRings() throws {
    let backend = try MemoryBackend()
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(queueCount: 2)
    driver.fill(data, 12, 0)
    driver.add(1, [.readable(data, 100)])
    _ = harvest(driver.memory)
    let changed = expectWritesMarked(driver.memory) { driver.kick(1) }
    #expect(changed.isSubset(of: [Int(driver.queues[1].used / 4096)]))
  }

  /// Marks are made after the bytes are stored: a harvest at any moment, followed by a copy of the pages it names, keeps
  /// up with RAM.
  @Test(.timeLimit(.minutes(Environment.patience))) func dirty_harvestWhileWorking_copyNeverFallsBehind() throws {
    let driver = try TestDriver(Entropy())
    driver.start(size: 64)
    let loop = driver.loop
    let thread = try HostThread.start(name: "device") { loop.run() }
    var copy = contents(driver.memory)
    _ = harvest(driver.memory)
    for round in 0..<300 as Range<UInt64> {
      // The driver's own stores are a vCPU's, which the host's log would tell of.
      for index in 0..<32 as Range<UInt64> {
        driver.add(0, [.writable(data + (index * 3 + round) % 200 * 4096 + 4000, 200)])
      }
      driver.write(MMIORegister.queueNotify, 0)
      for _ in 0..<4 {
        for page in harvest(driver.memory) {
          let bytes = try driver.memory.bytes(at: UInt64(page) * 4096, count: 4096)
          copy.replaceSubrange(page * 4096..<(page + 1) * 4096, with: bytes)
        }
      }
      let deadline = Deadline(seconds: 5)
      var back = 0
      while back < 32, !deadline.passed { back += driver.takeUsed().count }
      #expect(back == 32)
    }
    loop.stop()
    thread.join()
    for page in harvest(driver.memory) {
      let bytes = try driver.memory.bytes(at: UInt64(page) * 4096, count: 4096)
      copy.replaceSubrange(page * 4096..<(page + 1) * 4096, with: bytes)
    }
    // Descriptors and avail ring (pages 16 and 17) are the driver's.
    #expect(changedPages(copy, contents(driver.memory)).subtracting([16, 17]).isEmpty)
  }
}
