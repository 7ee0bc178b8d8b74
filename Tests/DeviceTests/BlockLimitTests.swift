import CLinux
import CTestSupport
import Devices
import Glibc
import GuestMemory
import Harness
import StateCodec
import Synchronization
import Testing
import VirtioLayout

private typealias Kind = BlockRequestType

/// A disk that notes what it is asked, and answers as it is told.
private final class NotingDisk: Disk {
  let isReadOnly = false
  let capacity: UInt64 = 1 << 30
  private let notes = Mutex<[String]>([])
  private let answer: @Sendable (_ what: String) -> DiskOutcome

  init(answer: @escaping @Sendable (String) -> DiskOutcome = { _ in .done }) { self.answer = answer }

  /// What was asked since the last call.
  func take() -> [String] {
    notes.withLock { notes in
      defer { notes = [] }
      return notes
    }
  }

  private func note(_ what: String) -> DiskOutcome {
    notes.withLock { $0.append(what) }
    return answer(what)
  }

  func read(
    _ memory: GuestMemory, _ buffers: GuestBuffers, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { note(nowait ? "try read" : "read") }
  func write(
    _ memory: GuestMemory, _ buffers: GuestBuffers, offset: UInt64, count: UInt64, position: UInt64, nowait: Bool
  ) -> DiskOutcome { note(nowait ? "try write" : "write") }
  func flush() -> DiskOutcome { note("flush") }
  func discard(position: UInt64, count: UInt64) -> DiskOutcome { note("discard") }
  func writeZeroes(position: UInt64, count: UInt64, unmap: Bool) -> DiskOutcome { note("zero") }
}

/// A noting disk's device and its driver.
private struct Noting {
  let disk: NotingDisk
  let device: BlockDevice
  let driver: TestDriver

  init(features: UInt64 = BlockFeature.flush, answer: @escaping @Sendable (String) -> DiskOutcome = { _ in .done })
    throws
  {
    disk = NotingDisk(answer: answer)
    device = try BlockDevice(disk: disk, serial: "noting", workerCount: 1)
    try device.start()
    driver = try TestDriver(device)
    driver.start(features, size: 64)
  }

  /// Offers a request; DISCARD and WRITE_ZEROES are for the first eight sectors.
  func add(_ type: UInt32, count: UInt32 = 512, slot: UInt64 = 0) {
    driver.poke(BlockRequestHeader(type: type, sector: 0), at: TestDisk.header(slot))
    driver.poke(0xee as UInt8, at: TestDisk.status(slot))
    var data = Buffer(address: TestDisk.data(slot), length: count, writable: type == Kind.read)
    if type == Kind.discard || type == Kind.writeZeroes {
      driver.poke(BlockRangeSegment(sector: 0, sectorCount: 8, flags: 0), at: TestDisk.data(slot))
      data.length = 16
    }
    let isFlush = type == Kind.flush
    driver.add(
      0, [.readable(TestDisk.header(slot), 16)] + (isFlush ? [] : [data]) + [.writable(TestDisk.status(slot), 1)])
  }

  /// Does one request; its status.
  func run(_ type: UInt32) -> UInt8? {
    add(type)
    driver.kick()
    return driver.collect(1).count == 1 ? driver.peek(at: TestDisk.status(0)) : nil
  }
}

/// What one request may ask for, and how much of the device thread a visit takes.
@Suite("Block requests are bounded") struct BlockLimitTests {
  private let limit = 16 << 20

  /// 16 MiB in 16 descriptors that all name the same RAM, or one sector more.
  @Test(arguments: [Kind.read, Kind.write], [UInt32(0), 512])
  func bytes_ofARequest_areLimited(type: UInt32, more: UInt32) throws {
    let disk = try TestDisk(sectors: 65536, sparse: true)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start(size: 64)
    driver.poke(BlockRequestHeader(type: type, sector: 0), at: TestDisk.header(0))
    let data = (0..<16).map { _ in Buffer(address: 2 << 20, length: 1 << 20, writable: type == Kind.read) }
    let rest = Buffer(address: 2 << 20, length: more, writable: type == Kind.read)
    driver.add(
      0, [.readable(TestDisk.header(0), 16)] + data + (more == 0 ? [] : [rest]) + [.writable(TestDisk.status(0), 1)])
    driver.kick()
    #expect(driver.collect(1).map(\.written) == [more == 0 && type == Kind.read ? UInt32(limit) + 1 : 1])
    #expect(driver.peek(UInt8.self, at: TestDisk.status(0)) == (more == 0 ? BlockStatus.ok : BlockStatus.ioError))
    #expect(driver.mmio.mistakes[.request] == (more == 0 ? 0 : 1))
  }

  @Test func announcedSegments_makeNoRequestThatIsRefused() throws {
    let disk = try TestDisk(sectors: 8)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    #expect(driver.offeredFeatures & BlockFeature.sizeMax != 0)
    let (size, count) = (driver.mmio.read(offset: 0x108, size: 4), driver.mmio.read(offset: 0x10c, size: 4))
    // Linux takes no segments smaller than a page, and wants its 1280 KiB requests whole.
    #expect(size >= 4096 && size * count >= 1280 << 10 && size * count <= UInt64(limit))
  }

  @Test(
    arguments: [
      (Kind.discard, 1 << 18, 16, BlockStatus.ok), (Kind.discard, 1 << 18 + 1, 1, BlockStatus.ioError),
      (Kind.discard, 8, 17, BlockStatus.ioError), (Kind.writeZeroes, 1 << 15, 1, BlockStatus.ok),
      (Kind.writeZeroes, 1 << 15 + 1, 1, BlockStatus.ioError), (Kind.writeZeroes, 8, 2, BlockStatus.ioError),
    ] as [(UInt32, UInt32, Int, UInt8)])
  func ranges_keepToWhatIsAnnounced(type: UInt32, sectors: UInt32, count: Int, status: UInt8) throws {
    let disk = try TestDisk(sectors: 1 << 19, sparse: true)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start(size: 8)
    let (range, ranges): (UInt64, UInt64) = type == Kind.discard ? (0x124, 0x128) : (0x130, 0x134)
    let isAnnounced =
      sectors <= driver.mmio.read(offset: range, size: 4) && count <= driver.mmio.read(offset: ranges, size: 4)
    #expect(isAnnounced == (status == BlockStatus.ok))
    for index in 0..<UInt64(count) {
      driver.poke(BlockRangeSegment(sector: 0, sectorCount: sectors, flags: 0), at: TestDisk.data(0) + 16 * index)
    }
    #expect(disk.run(driver, type, sector: 0, count: UInt32(16 * count)) == status)
  }

  /// §5.2.6.2, whatever else is wrong with the request.
  @Test(
    arguments: [
      (Kind.discard, 0, 8, BlockRangeSegment.unmap), (Kind.discard, 0, 8, 2), (Kind.discard, 1 << 40, 8, 4),
      (Kind.writeZeroes, 0, 8, 2), (Kind.writeZeroes, 0, 8, 3), (Kind.writeZeroes, 1 << 40, 8, 1 << 31),
    ] as [(UInt32, UInt64, UInt32, UInt32)])
  func flags_thatAreNotKnown_areUnsupported(type: UInt32, sector: UInt64, sectors: UInt32, flags: UInt32) throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start(size: 8)
    driver.poke(BlockRangeSegment(sector: sector, sectorCount: sectors, flags: flags), at: TestDisk.data(0))
    #expect(disk.run(driver, type, sector: 0, count: 16) == BlockStatus.unsupported)
    #expect(disk.contents(0, 4096) == TestDisk.pattern(sector: 0, count: 4096))
  }

  /// Of those that discard more than may be in flight, one is: who drains waits for no second one.
  @Test func ranges_countInWhatIsInFlight() throws {
    let goes = lx_eventfd(0)
    defer { lx_close(goes) }
    let noting = try Noting { what in
      if what == "discard" { HostThread.waitReadable(goes) }
      return .done
    }
    defer { noting.device.shutDown() }
    let driver = noting.driver
    for slot in 0..<4 as Range<UInt64> {
      noting.add(Kind.discard, slot: slot)
      driver.poke(BlockRangeSegment(sector: 0, sectorCount: 1 << 18, flags: 0), at: TestDisk.data(slot))
    }
    driver.kick()
    // A second one would be with the worker, and be waited for as well.
    lx_eventfd_signal(goes)
    driver.mmio.quiesce()
    #expect(driver.takeUsed().count == 1)
    driver.mmio.resume()
    #expect(driver.collect(3).count == 3)
  }

  /// A visit ends when its time is over, whatever waits: the console, the network card and who pauses come next.
  @Test func visit_endsAfterItsTime() throws {
    let noting = try Noting { _ in
      usleep(2000)  // twice a visit's time
      return .done
    }
    defer { noting.device.shutDown() }
    for slot in 0..<8 as Range<UInt64> { noting.add(Kind.read, slot: slot) }
    noting.driver.write(MMIORegister.queueNotify, 0)
    noting.driver.mmio.ready(tag: 0, events: EPOLLIN.rawValue)
    #expect(noting.driver.takeUsed().count == 1)
    #expect(isReadable(noting.driver.mmio.notifyDescriptors[0]), "the rest has its turn")
    #expect(noting.driver.collect(7).count == 7)
  }

  /// What would keep the device thread for longer than a visit, it does not do itself.
  @Test(arguments: [(1 << 20, "try read"), (2 << 20, "read")] as [(UInt32, String)])
  func largeRequest_isAWorkers(count: UInt32, asked: String) throws {
    let noting = try Noting()
    defer { noting.device.shutDown() }
    noting.add(Kind.read, count: count)
    noting.driver.kick()
    #expect(noting.driver.collect(1).count == 1 && noting.disk.take() == [asked])
  }
}

/// virtio 1.2 §5.2.6.2: a driver without VIRTIO_BLK_F_FLUSH may take what is written for durable.
@Suite("Block writes of a driver without FLUSH") struct WriteThroughTests {
  @Test(arguments: [(Kind.write, "write"), (Kind.discard, "discard"), (Kind.writeZeroes, "zero")])
  func change_isDurableBeforeItIsDone(type: UInt32, name: String) throws {
    let noting = try Noting(features: 0)
    defer { noting.device.shutDown() }
    #expect(noting.run(type) == BlockStatus.ok)
    #expect(noting.disk.take() == [name, "flush"])
    #expect(noting.run(Kind.read) == BlockStatus.ok)
    #expect(noting.disk.take() == ["try read"])
  }

  @Test(arguments: [(Kind.write, ["try write"]), (Kind.discard, ["discard"]), (Kind.writeZeroes, ["zero"])])
  func driverWithFlush_asksForIt(type: UInt32, asked: [String]) throws {
    let noting = try Noting()
    defer { noting.device.shutDown() }
    #expect(noting.run(type) == BlockStatus.ok && noting.disk.take() == asked)
    #expect(noting.run(Kind.flush) == BlockStatus.ok && noting.disk.take() == ["flush"])
  }

  @Test func changeThatIsNotDurable_failed() throws {
    let noting = try Noting(features: 0) { $0 == "flush" ? .failed(EIO) : .done }
    defer { noting.device.shutDown() }
    #expect(noting.run(Kind.write) == BlockStatus.ioError)
    // One that failed is not made durable.
    let failing = try Noting(features: 0) { $0 == "write" ? .failed(ENOSPC) : .done }
    defer { failing.device.shutDown() }
    #expect(failing.run(Kind.write) == BlockStatus.ioError && failing.disk.take() == ["write"])
  }

  /// What was agreed goes with the machine.
  @Test func whoRestores_writesThroughToo() throws {
    let (first, second) = (try Noting(features: 0), try Noting())
    defer { for noting in [first, second] { noting.device.shutDown() } }
    first.add(Kind.write)
    var writer = StateWriter()
    first.driver.mmio.save(to: &writer)
    try second.driver.memory.write(contents(first.driver.memory), at: 0)
    second.driver.queues = first.driver.queues
    var reader = StateReader(writer.bytes)
    try second.driver.mmio.restore(from: &reader)
    second.driver.mmio.resume()
    #expect(second.driver.collect(1).count == 1 && second.disk.take() == ["write", "flush"])
  }

  @Test func file_hasItOnItsDisk() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    guard unsafe ts_unwritten_pages(disk.path) > 0 else {
      try Test.cancel("this file system does not say what is durable")
    }
    let driver = try TestDriver(disk.device)
    driver.start(size: 8)
    #expect(disk.run(driver, Kind.write, sector: 0, count: 4096) == BlockStatus.ok)
    #expect(unsafe ts_unwritten_pages(disk.path) == 0)
  }
}

/// An attempt without waiting may fail for reasons of its own.
@Suite("Block attempts without waiting") struct NowaitTests {
  @Test(arguments: [Kind.read, Kind.write], [EINVAL, EOPNOTSUPP, EIO, ENOSPC, EAGAIN])
  func errorOfAnAttempt_isNotTheRequests(type: UInt32, error: Int32) throws {
    let noting = try Noting { $0.hasPrefix("try") ? .failed(error) : .done }
    defer { noting.device.shutDown() }
    #expect(noting.run(type) == BlockStatus.ok)
    #expect(noting.disk.take() == (type == Kind.read ? ["try read", "read"] : ["try write", "write"]))
  }

  @Test(arguments: [Kind.read, Kind.write]) func errorWithoutHurry_isTheRequests(type: UInt32) throws {
    let noting = try Noting { $0.hasPrefix("try") ? .wouldBlock : .failed(EIO) }
    defer { noting.device.shutDown() }
    #expect(noting.run(type) == BlockStatus.ioError)
  }

  /// ext4 reads like that and does not write; tmpfs does neither, or both.
  @Test(arguments: ["/tmp", "/dev/shm"]) func file_isNotAskedAgainForWhatItCanNot(folder: String) throws {
    let path = "\(folder)/minivmm-nowait-\(getpid())"
    let file = unsafe open(path, O_CREAT | O_RDWR, 0o600)
    defer { unsafe unlink(path) }
    let bytes = [UInt8](repeating: 1, count: 8192)
    #expect(unsafe pwrite(file, bytes, bytes.count, 0) == bytes.count)
    close(file)
    let disk = try DiskFile(path: path, readOnly: false)
    let memory = try GuestMemory(size: 1 << 20)
    var buffers = GuestBuffers()
    _ = buffers.append(address: 0, count: 4096, in: memory)
    let reads = (0..<2).map { _ in disk.read(memory, buffers, count: 4096, position: 0, nowait: true) }
    let writes = (0..<2).map { _ in disk.write(memory, buffers, offset: 0, count: 4096, position: 0, nowait: true) }
    for outcomes in [reads, writes] {
      #expect(outcomes[1] == (outcomes[0] == .failed(EOPNOTSUPP) ? .wouldBlock : .done))
    }
    #expect(disk.write(memory, buffers, offset: 0, count: 4096, position: 0, nowait: false) == .done)
    #expect(disk.read(memory, buffers, count: 4096, position: 0, nowait: false) == .done)
  }
}
