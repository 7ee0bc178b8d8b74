import CLinux
import CTestSupport
import Devices
import Glibc
import GuestMemory
import Harness
import Testing
import VirtioLayout

private typealias Kind = BlockRequestType
private let ok = BlockStatus.ok
private let ioError = BlockStatus.ioError

@Suite("Family 13: block requests") final class BlockTests {
  let disk: TestDisk
  let driver: TestDriver
  static let sectors: UInt64 = 64

  init() throws {
    disk = try TestDisk(sectors: Self.sectors)
    driver = try TestDriver(disk.device)
    driver.start(size: 16)
  }

  deinit { disk.device.shutDown() }

  /// The device is none the worse for a refused request.
  private func expectGoesOn(sourceLocation: SourceLocation = #_sourceLocation) {
    #expect(!driver.needsReset, sourceLocation: sourceLocation)
    #expect(disk.run(driver, Kind.read, sector: 1, count: 512) == ok, sourceLocation: sourceLocation)
    #expect(
      driver.bytes(TestDisk.data(0), 512) == TestDisk.pattern(sector: 1, count: 512), sourceLocation: sourceLocation)
  }

  @Test func read_returnsTheSectors() {
    #expect(disk.run(driver, Kind.read, sector: 3, count: 4096) == ok)
    #expect(driver.bytes(TestDisk.data(0), 4096) == TestDisk.pattern(sector: 3, count: 4096))
  }

  @Test func read_usedLengthIsDataAndStatus() {
    disk.add(driver, Kind.read, sector: 3, count: 1024)
    driver.kick()
    #expect(driver.collect(1).first?.written == 1025)
  }

  @Test func write_reachesTheFile() {
    driver.poke(bytes: [UInt8](repeating: 0x77, count: 1024), at: TestDisk.data(0))
    #expect(disk.run(driver, Kind.write, sector: 5, count: 1024) == ok)
    #expect(disk.contents(5 * 512, 1024) == [UInt8](repeating: 0x77, count: 1024))
    #expect(disk.contents(4 * 512, 512) == TestDisk.pattern(sector: 4, count: 512))
    #expect(disk.contents(7 * 512, 512) == TestDisk.pattern(sector: 7, count: 512))
  }

  @Test func write_usedLengthIsTheStatusByteOnly() {
    disk.add(driver, Kind.write, sector: 3, count: 1024)
    driver.kick()
    #expect(driver.collect(1).first?.written == 1)
  }

  @Test(arguments: [BlockRequestType.read, BlockRequestType.write])
  func request_lastSectorExact_passes(type: UInt32) {
    #expect(disk.run(driver, type, sector: Self.sectors - 1, count: 512) == ok)
    #expect(disk.run(driver, type, sector: Self.sectors - 4, count: 2048) == ok)
    #expect(driver.mmio.mistakes.total == 0)
  }

  @Test(arguments: [BlockRequestType.read, BlockRequestType.write])
  func request_oneSectorBeyondTheEnd_fails(type: UInt32) {
    #expect(disk.run(driver, type, sector: Self.sectors, count: 512) == ioError)
    #expect(disk.run(driver, type, sector: Self.sectors - 1, count: 1024) == ioError)
    #expect(driver.mmio.mistakes[.request] == 2)
    #expect(disk.contents(0, 1 << 20).count == Int(Self.sectors * 512))
    expectGoesOn()
  }

  @Test(
    arguments: [BlockRequestType.read, BlockRequestType.write],
    [UInt64.max, UInt64.max - 1, 1 << 55, (1 << 55) - 1, 1 << 63, UInt64.max / 512] as [UInt64])
  func request_sectorOverflow_fails(type: UInt32, sector: UInt64) {
    #expect(disk.run(driver, type, sector: sector, count: 512) == ioError)
    expectGoesOn()
  }

  @Test(
    arguments: [BlockRequestType.read, BlockRequestType.write], [1, 511, 513, 1023] as [UInt32])
  func request_lengthNotAMultipleOfASector_fails(type: UInt32, count: UInt32) {
    let before = disk.contents(0, Int(Self.sectors * 512))
    #expect(disk.run(driver, type, sector: 0, count: count) == ioError)
    #expect(disk.contents(0, Int(Self.sectors * 512)) == before)
    expectGoesOn()
  }

  @Test func request_failed_leavesTheBufferAlone() {
    driver.fill(TestDisk.data(0), 512, 0x11)
    #expect(disk.run(driver, Kind.read, sector: 1 << 40, count: 512) == ioError)
    #expect(driver.bytes(TestDisk.data(0), 512) == [UInt8](repeating: 0x11, count: 512))
  }

  @Test func write_toAReadOnlyDisk_failsAndChangesNothing() throws {
    let disk = try TestDisk(sectors: 8, readOnly: true)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    #expect(driver.offeredFeatures & BlockFeature.readOnly != 0)
    driver.start()
    #expect(disk.run(driver, Kind.write, sector: 0, count: 512) == ioError)
    #expect(disk.run(driver, Kind.discard, sector: 0, count: 16) == ioError)
    #expect(disk.run(driver, Kind.writeZeroes, sector: 0, count: 16) == ioError)
    #expect(disk.run(driver, Kind.read, sector: 0, count: 512) == ok)
    #expect(disk.contents(0, 4096) == TestDisk.pattern(sector: 0, count: 4096))
  }

  @Test(arguments: [0, 1, 8, 15] as [UInt32])
  func header_short_failsWithStatus(length: UInt32) {
    driver.poke(0xee as UInt8, at: TestDisk.status(0))
    let header: [Buffer] = length == 0 ? [] : [.readable(TestDisk.header(0), length)]
    driver.add(0, header + [.writable(TestDisk.status(0), 1)])
    driver.kick()
    #expect(driver.collect(1).first?.written == 1)
    #expect(driver.peek(UInt8.self, at: TestDisk.status(0)) == ioError)
    #expect(driver.mmio.mistakes[.request] == 1)
    expectGoesOn()
  }

  /// The standard leaves the framing to the driver: a header may lie in several buffers.
  @Test func header_splitOverSixteenBuffers_passes() throws {
    let disk = try TestDisk(sectors: 8)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start(size: 32)
    driver.poke(BlockRequestHeader(type: Kind.read, sector: 2), at: TestDisk.header(0))
    let header = (0..<16).map { Buffer.readable(TestDisk.header(0) + $0, 1) }
    driver.add(0, header + [.writable(TestDisk.data(0), 100), .writable(TestDisk.data(0) + 0x800, 413)])
    driver.kick()
    #expect(driver.collect(1).map(\.written) == [513])
    #expect(
      driver.bytes(TestDisk.data(0), 100) + driver.bytes(TestDisk.data(0) + 0x800, 412)
        == TestDisk.pattern(sector: 2, count: 512))
    #expect(driver.peek(UInt8.self, at: TestDisk.data(0) + 0x800 + 412) == ok)
  }

  /// Header, data and status in one writable buffer: there is no header, and the last byte says so.
  @Test func header_inTheWrongDirection_failsWithStatus() {
    driver.poke(BlockRequestHeader(type: Kind.read, sector: 0), at: TestDisk.header(0))
    driver.add(0, [.writable(TestDisk.header(0), 16), .writable(TestDisk.data(0), 513)])
    driver.kick()
    #expect(driver.collect(1).map(\.written) == [1])
    #expect(driver.peek(UInt8.self, at: TestDisk.data(0) + 512) == ioError)
    expectGoesOn()
  }

  /// No status byte can be given: the chain comes back with nothing in it.
  @Test func status_notWritable_chainComesBackEmpty() {
    driver.poke(BlockRequestHeader(type: Kind.write, sector: 0), at: TestDisk.header(0))
    let head = driver.add(0, [.readable(TestDisk.header(0), 16), .readable(TestDisk.data(0), 512)])
    driver.kick()
    #expect(driver.collect(1) == [Used(head: head ?? 0, written: 0)])
    #expect(driver.mmio.mistakes[.request] == 1)
    expectGoesOn()
    #expect(disk.contents(0, 512) == TestDisk.pattern(sector: 0, count: 512))
  }

  @Test(arguments: [2, 3, 5, 6, 7, 9, 10, 12, 14, 16, 0x8000_0000, 0xffff_ffff] as [UInt32])
  func type_unknown_isUnsupported(type: UInt32) {
    #expect(disk.run(driver, type, sector: 0, count: 512) == BlockStatus.unsupported)
    #expect(driver.mmio.mistakes[.request] == 1)
    expectGoesOn()
  }

  @Test func getID_answersTwentyBytes() {
    #expect(disk.run(driver, Kind.getID, sector: 0, count: 20) == ok)
    #expect(driver.bytes(TestDisk.data(0), 20) == Array("test-disk".utf8) + [UInt8](repeating: 0, count: 11))
  }

  @Test(arguments: [1, 19] as [UInt32])
  func getID_bufferTooShort_failsAndWritesNoData(count: UInt32) {
    driver.fill(TestDisk.data(0), 32, 0x11)
    #expect(disk.run(driver, Kind.getID, sector: 0, count: count) == ioError)
    #expect(driver.bytes(TestDisk.data(0), 32) == [UInt8](repeating: 0x11, count: 32))
  }

  @Test func getID_bufferLonger_getsTwentyBytesAndNoMore() {
    driver.fill(TestDisk.data(0), 64, 0x11)
    #expect(disk.run(driver, Kind.getID, sector: 0, count: 64) == ok)
    #expect(driver.bytes(TestDisk.data(0) + 20, 44) == [UInt8](repeating: 0x11, count: 44))
  }

  @Test func flush_isAcknowledged() { #expect(disk.run(driver, Kind.flush, sector: 0) == ok) }

  @Test func emptyRead_isAcknowledged() { #expect(disk.run(driver, Kind.read, sector: 0) == ok) }

  @Test(arguments: [false, true]) func writeZeroes_readsAsZerosAfterwards(unmap: Bool) {
    driver.poke(
      BlockRangeSegment(sector: 8, sectorCount: 8, flags: unmap ? BlockRangeSegment.unmap : 0), at: TestDisk.data(0))
    #expect(disk.run(driver, Kind.writeZeroes, sector: 0, count: 16) == ok)
    #expect(disk.contents(8 * 512, 4096) == [UInt8](repeating: 0, count: 4096))
    #expect(disk.contents(7 * 512, 512) == TestDisk.pattern(sector: 7, count: 512))
    #expect(disk.contents(16 * 512, 512) == TestDisk.pattern(sector: 16, count: 512))
  }

  @Test(
    arguments: [BlockRequestType.discard, BlockRequestType.writeZeroes],
    [(64, 1), (63, 2), (UInt64.max, 1), (1 << 55, 1), (0, 65), (0, UInt32.max)] as [(UInt64, UInt32)])
  func ranges_outsideTheDisk_fail(type: UInt32, range: (UInt64, UInt32)) {
    // Only DISCARD takes several.
    let isDiscard = type == Kind.discard
    let bad = BlockRangeSegment(sector: range.0, sectorCount: range.1, flags: 0)
    driver.poke(isDiscard ? BlockRangeSegment(sector: 0, sectorCount: 8, flags: 0) : bad, at: TestDisk.data(0))
    driver.poke(bad, at: TestDisk.data(0) + 16)
    #expect(disk.run(driver, type, sector: 0, count: isDiscard ? 32 : 16) == ioError)
    // Refused as a whole: the good range is not half of a done request.
    #expect(disk.contents(0, 4096) == TestDisk.pattern(sector: 0, count: 4096))
    expectGoesOn()
  }

  @Test(arguments: [0, 1, 15, 17, 17 * 16] as [UInt32])
  func ranges_badListLength_fail(count: UInt32) {
    #expect(disk.run(driver, Kind.discard, sector: 0, count: count) == ioError)
    expectGoesOn()
  }

  @Test func malformedRequests_allComeBack() {
    for round in 0..<50 {
      for slot in 0..<4 as Range<UInt64> {
        disk.add(driver, UInt32(round * 4) + 20, sector: 1 << 60, count: 7, slot: slot)
      }
      driver.kick()
      #expect(driver.collect(4).count == 4)
    }
    expectGoesOn()
  }

  @Test func configuration_saysWhatTheDiskIs() {
    #expect(driver.mmio.read(offset: 0x100, size: 8) == Self.sectors)
    #expect(driver.mmio.read(offset: 0x10c, size: 4) == 254)
    #expect(driver.mmio.read(offset: 0x114, size: 4) == 512)
  }
}

@Suite("Family 13: block files that misbehave", .serialized) struct BlockFileTests {
  @Test func file_truncatedBehindOurBack_readsFailAndTheDeviceGoesOn() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start()
    #expect(unsafe truncate(disk.path, 4096) == 0)
    #expect(disk.run(driver, Kind.read, sector: 8, count: 512) == ioError)
    // Half of it is still there: the whole request fails.
    #expect(disk.run(driver, Kind.read, sector: 4, count: 4096) == ioError)
    #expect(disk.run(driver, Kind.read, sector: 0, count: 4096) == ok)
    // A write grows the file again.
    #expect(disk.run(driver, Kind.write, sector: 63, count: 512) == ok)
    #expect(disk.run(driver, Kind.read, sector: 8, count: 512) == ok)
    #expect(!driver.needsReset)
  }

  @Test func file_sizeNotAMultipleOfASector_isRoundedDown() throws {
    let disk = try TestDisk(sectors: 8, extraBytes: 511)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start()
    #expect(driver.mmio.read(offset: 0x100, size: 8) == 8)
    #expect(disk.run(driver, Kind.read, sector: 8, count: 512) == ioError)
  }

  @Test(.enabled(if: getuid() == 0, "a tmpfs can be mounted by root only"))
  func file_onAFullFileSystem_writesFailAndTheDeviceGoesOn() throws {
    let directory = try TemporaryDirectory()
    guard unsafe ts_mount_tmpfs(directory.path, 256 << 10) == 0 else {
      try Test.cancel("tmpfs can't be mounted here")
    }
    defer { unsafe ts_unmount(directory.path) }
    let disk = try TestDisk(sectors: 8192, sparse: true, path: directory.file("disk"))
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start()
    var statuses: [UInt8] = []
    for index in 0..<64 as Range<UInt64> {
      statuses.append(disk.run(driver, Kind.write, sector: index * 16, count: 8192) ?? 0xff)
    }
    #expect(statuses.first == ok)
    #expect(statuses.last == ioError)
    #expect(disk.run(driver, Kind.read, sector: 0, count: 8192) == ok)
    #expect(disk.run(driver, Kind.flush, sector: 0) == ok)
    #expect(!driver.needsReset)
  }

  @Test func file_beyondTheProcessLimit_writesFailAndTheDeviceGoesOn() async {
    await #expect(processExitsWith: .success) {
      let disk = try TestDisk(sectors: 64)
      let driver = try TestDriver(disk.device)
      driver.start()
      let limited = ts_limit_file_size(4096)
      let refused = disk.run(driver, BlockRequestType.write, sector: 32, count: 512)
      let written = disk.run(driver, BlockRequestType.write, sector: 0, count: 512)
      disk.device.shutDown()
      exit(limited == 0 && refused == BlockStatus.ioError && written == BlockStatus.ok ? 0 : 1)
    }
  }

  @Test func file_opening_refusesWhatIsNoDisk() throws {
    let directory = try TemporaryDirectory()
    #expect(throws: DiskError.open(path: directory.file("none"), errno: ENOENT)) {
      try DiskFile(path: directory.file("none"), readOnly: false)
    }
    #expect(throws: DiskError.notADisk(path: "/dev/null")) { try DiskFile(path: "/dev/null", readOnly: false) }
    let empty = directory.file("disk")
    close(unsafe open(empty, O_CREAT | O_RDWR, 0o600))
    #expect(throws: DiskError.empty(path: empty)) { try DiskFile(path: empty, readOnly: false) }
    #expect(unsafe truncate(empty, 511) == 0)
    #expect(throws: DiskError.empty(path: empty)) { try DiskFile(path: empty, readOnly: false) }
  }

  @Test func file_openTwice_writersExcludeEverybody() throws {
    let disk = try TestDisk(sectors: 8)
    defer { disk.device.shutDown() }
    #expect(throws: DiskError.busy(path: disk.path)) { try DiskFile(path: disk.path, readOnly: false) }
    #expect(throws: DiskError.busy(path: disk.path)) { try DiskFile(path: disk.path, readOnly: true) }
    let readers = try TestDisk(sectors: 8, readOnly: true)
    defer { readers.device.shutDown() }
    #expect(throws: Never.self) { try DiskFile(path: readers.path, readOnly: true) }
    #expect(throws: DiskError.busy(path: readers.path)) { try DiskFile(path: readers.path, readOnly: false) }
  }

  /// Whatever order the workers finish in, every request comes back once, with its own data.
  @Test(.timeLimit(.minutes(Environment.patience))) func requests_manyAtOnce_eachComesBackOnce() throws {
    let disk = try TestDisk(sectors: 4096)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start(CommonFeature.eventIndex, size: 256)
    for round in 0..<40 {
      var heads: Set<UInt16> = []
      for slot in 0..<64 as Range<UInt64> {
        let sector = (slot * 61 + UInt64(round)) % 4000
        let type = slot % 5 == 0 ? Kind.flush : Kind.read
        if let head = disk.add(driver, type, sector: sector, count: type == Kind.flush ? 0 : 4096, slot: slot) {
          heads.insert(head)
        }
      }
      driver.write(MMIORegister.queueNotify, 0)
      let used = driver.collect(64)
      #expect(used.count == 64)
      #expect(Set(used.map(\.head)) == heads)
      for slot in 0..<64 as Range<UInt64> where slot % 5 != 0 {
        let sector = (slot * 61 + UInt64(round)) % 4000
        #expect(driver.peek(UInt8.self, at: TestDisk.data(slot)) == TestDisk.pattern(Int(sector) * 512))
        #expect(driver.peek(UInt8.self, at: TestDisk.status(slot)) == ok)
      }
    }
  }
}
