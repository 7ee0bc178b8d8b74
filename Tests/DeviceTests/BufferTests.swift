import Devices
import GuestMemory
import Testing
import VirtioLayout

private let next = VirtqueueDescriptor.next
private let write = VirtqueueDescriptor.write
private let data = TestDriver.buffers

@Suite("Family 5: buffers") struct BufferTests {
  let device = RecordingDevice()
  let driver: TestDriver
  static let end: UInt64 = 4 << 20

  init() throws {
    driver = try TestDriver(device)
    driver.start(size: 8)
  }

  private func offer(_ address: UInt64, _ length: UInt32) {
    driver.describe(0, address, length, flags: write)
    driver.offer(0)
    driver.kick()
  }

  @Test(
    arguments: [(UInt64.max, 1), (UInt64.max, 2), (UInt64.max - 15, 16), (UInt64.max - 15, UInt32.max)]
      as [(UInt64, UInt32)])
  func buffer_addressPlusLengthWraps_setsNeedsReset(address: UInt64, length: UInt32) {
    offer(address, length)
    expectNeedsResetAndRecovery(driver)
  }

  @Test(arguments: [1, 16, 4096, 5000] as [UInt32])
  func buffer_endingAtTheLastByteOfRAM_passes(length: UInt32) {
    offer(Self.end - UInt64(length), length)
    #expect(driver.takeUsed() == [Used(head: 0, written: length)])
    #expect(driver.peek(UInt8.self, at: Self.end - 1) == 0xa5)
  }

  @Test(arguments: [1, 16, 4096, 5000] as [UInt32])
  func buffer_endingOneByteBeyondRAM_setsNeedsReset(length: UInt32) {
    offer(Self.end - UInt64(length) + 1, length)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func buffer_zeroLength_setsNeedsReset() {
    offer(data, 0)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func buffer_wholeOfRAM_passesButNotOneMore() {
    offer(0, UInt32(Self.end) + 1)
    expectNeedsResetAndRecovery(driver)
  }

  @Test(arguments: [0xc000_0000, 0xfee0_0000, 0xffff_ffff, 0x1_0000_0000] as [UInt64])
  func buffer_inADeviceWindowOrTheHole_setsNeedsReset(address: UInt64) {
    offer(address, 1)
    expectNeedsResetAndRecovery(driver)
  }
}

/// RAM on both sides of the hole: 3 GiB + 16 MiB, of which only touched pages take memory.
@Suite("Family 5: buffers around the memory hole", .serialized) struct HoleTests {
  let device = RecordingDevice()
  let driver: TestDriver
  static let low = GuestMemory.holeStart
  static let high = GuestMemory.highStart

  init() throws {
    driver = try TestDriver(device, memory: GuestMemory(size: (3 << 30) + (16 << 20)))
    driver.start(size: 8)
  }

  private func offer(_ address: UInt64, _ length: UInt32) {
    driver.describe(0, address, length, flags: write)
    driver.offer(0)
    driver.kick()
  }

  @Test func buffer_acrossTheHole_setsNeedsReset() {
    offer(Self.low - 8, 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func buffer_spanningTheWholeHole_setsNeedsReset() {
    offer(Self.low - 8, UInt32(Self.high - Self.low) + 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func buffer_endingAtTheHole_passes() {
    offer(Self.low - 16, 16)
    #expect(driver.takeUsed() == [Used(head: 0, written: 16)])
  }

  @Test func buffer_startingBehindTheHole_passes() {
    offer(Self.high, 16)
    #expect(driver.takeUsed() == [Used(head: 0, written: 16)])
  }

  @Test func buffer_lastByteOfHighRAM_passesAndOneMoreDoesNot() {
    offer(Self.high + (16 << 20) - 16, 16)
    #expect(driver.takeUsed() == [Used(head: 0, written: 16)])
    offer(Self.high + (16 << 20) - 15, 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_totalBeyond32Bits_setsNeedsReset() {
    let half: UInt32 = 0x8000_0000
    driver.describe(0, 0, half, flags: next, next: 1)
    driver.describe(1, 0, half, flags: 0)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_totalOfBothDirectionsBeyond32Bits_setsNeedsReset() {
    let half: UInt32 = 0x8000_0000
    driver.describe(0, 0, half, flags: next, next: 1)
    driver.describe(1, 0, half, flags: write)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_totalOfExactly32Bits_passes() {
    driver.describe(0, 0, 0x8000_0000, flags: next, next: 1)
    driver.describe(1, 0, 0x7fff_ffff, flags: 0)
    driver.offer(0)
    driver.kick()
    #expect(driver.takeUsed() == [Used(head: 0, written: 0)])
    #expect(device.seen.first?.readableBytes == 0xffff_ffff)
  }

  /// Rings, an indirect table and buffers, all above 4 GiB, and a buffer on each side of the hole in one chain.
  @Test func everythingAbove4GiB_passesAndIsMarkedWhereItLies() {
    let (table, buffer) = (Self.high + 0x8_0000, Self.high + 0x10_0ff8)
    driver.start(CommonFeature.indirectDescriptors, size: 8, base: Self.high)
    driver.describe(table: table, 0, Self.low - 16, 16, flags: write | next, next: 1)
    driver.describe(table: table, 1, buffer, 16, flags: write)
    driver.describe(0, table, 32, flags: VirtqueueDescriptor.indirect)
    _ = harvest(driver.memory)
    driver.offer(0)
    driver.kick()
    #expect(driver.takeUsed() == [Used(head: 0, written: 32)])
    #expect(driver.bytes(Self.low - 16, 16) + driver.bytes(buffer, 16) == [UInt8](repeating: 0xa5, count: 32))
    // Pages are counted without the hole: above it they follow those below. Used ring, last page below, two of the buffer.
    let first = Int(Self.low / GuestMemory.pageSize)
    #expect(harvest(driver.memory) == [first + 0x12, first - 1, first + 0x100, first + 0x101])
  }

  @Test func disk_readsAndWritesAbove4GiB() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device, memory: driver.memory, name: "blk0")
    driver.start(size: 8, base: Self.high)
    let (header, data, status) = (Self.high + 0x10_0000, Self.high + 0x10_1000, Self.high + 0x10_2000)
    func request(_ type: UInt32, _ sector: UInt64, _ buffer: Buffer) -> UInt8 {
      driver.poke(BlockRequestHeader(type: type, sector: sector), at: header)
      driver.poke(0xee as UInt8, at: status)
      driver.add(0, [.readable(header, 16), buffer, .writable(status, 1)])
      driver.write(MMIORegister.queueNotify, 0)
      #expect(driver.collect(1).count == 1)
      return driver.peek(at: status)
    }
    #expect(request(BlockRequestType.read, 3, .writable(data, 1024)) == BlockStatus.ok)
    #expect(driver.bytes(data, 1024) == TestDisk.pattern(sector: 3, count: 1024))
    driver.fill(data, 512, 0x77)
    #expect(request(BlockRequestType.write, 9, .readable(data, 512)) == BlockStatus.ok)
    #expect(disk.contents(9 * 512, 512) == [UInt8](repeating: 0x77, count: 512))
  }

  @Test func ring_acrossTheHole_isRefused() {
    driver.negotiate()
    #expect(driver.setUpQueue(0, size: 8, descriptors: Self.low - 64) == 0)
    #expect(driver.setUpQueue(0, size: 8, used: Self.low - 8) == 0)
    #expect(driver.mmio.mistakes[.queueSetup] > 0)
    #expect(driver.setUpQueue(0, size: 8, descriptors: Self.low - 128, used: Self.high) == 1)
  }
}
