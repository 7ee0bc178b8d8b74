import Devices
import GuestMemory
import Testing
import VirtioLayout

private let next = VirtqueueDescriptor.next
private let write = VirtqueueDescriptor.write
private let indirect = VirtqueueDescriptor.indirect
private let data = TestDriver.buffers

@Suite("Family 1: chain shape") struct ChainShapeTests {
  let device = RecordingDevice()
  let driver: TestDriver

  init() throws {
    driver = try TestDriver(device)
    driver.start(size: 8)
  }

  @Test func chain_selfLoop_setsNeedsReset() {
    driver.describe(0, data, 16, flags: next, next: 0)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_twoCycle_setsNeedsReset() {
    driver.describe(0, data, 16, flags: next, next: 1)
    driver.describe(1, data, 16, flags: next, next: 0)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_ofExactlyQueueSize_passes() {
    let head = driver.add(0, (0..<8).map { .writable(data + 0x1000 * $0, 10) })
    driver.kick()
    #expect(driver.takeUsed() == [Used(head: head ?? 0, written: 80)])
    #expect(device.seen.first?.writable == (0..<8).map { data + 0x1000 * $0 })
  }

  @Test func chain_ofQueueSizePlusOne_setsNeedsReset() {
    for index in 0..<8 as Range<UInt16> { driver.describe(index, data, 10, flags: next, next: (index + 1) % 8) }
    driver.offer(3)
    driver.kick()
    #expect(device.seen.isEmpty)
    expectNeedsResetAndRecovery(driver)
  }

  @Test(arguments: [8, 9, 0x100, 0xffff] as [UInt16])
  func chain_nextOutOfRange_setsNeedsReset(next index: UInt16) {
    driver.describe(0, data, 16, flags: next, next: index)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test(arguments: [8, 255, 0x8000, 0xffff] as [UInt16])
  func chain_headOutOfRange_setsNeedsReset(head: UInt16) {
    driver.offer(head)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_sameHeadInFlightTwice_setsNeedsReset() {
    device.holds = true
    driver.describe(0, data, 16, flags: write)
    driver.offer(0)
    driver.kick()
    #expect(!driver.needsReset)
    driver.offer(0)
    driver.kick()
    #expect(device.seen.count == 1)
    device.holds = false
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_sameHeadAgainAfterUse_passes() {
    driver.describe(0, data, 16, flags: write)
    for _ in 0..<100 {
      driver.offer(0)
      driver.kick()
      #expect(driver.takeUsed() == [Used(head: 0, written: 16)])
    }
  }

  @Test func chain_nextWithoutFlag_isIgnored() {
    driver.describe(0, data, 16, flags: write, next: 0xffff)
    driver.offer(0)
    driver.kick()
    #expect(driver.takeUsed() == [Used(head: 0, written: 16)])
  }

  /// The in-flight set covers every head of the largest queue, across its words.
  @Test func chain_allHeadsOfTheLargestQueue_inFlightAtOnce() {
    driver.start(size: 256)
    device.holds = true
    for head in 0..<256 as Range<UInt16> {
      driver.describe(head, data, 1, flags: write)
      driver.offer(head)
    }
    driver.kick()
    #expect(device.seen.count == 256)
    #expect(!driver.needsReset)
    driver.offer(255)
    driver.kick()
    #expect(driver.needsReset)
  }
}

@Suite("Family 2: avail ring") struct AvailRingTests {
  let device = RecordingDevice()
  let driver: TestDriver

  init() throws {
    driver = try TestDriver(device)
    driver.start(size: 8)
  }

  @Test(arguments: [9, 16, 0x7fff, 0xfff0] as [UInt16])
  func avail_indexJumpsBeyondSize_setsNeedsReset(by jump: UInt16) {
    driver.describe(0, data, 16, flags: write)
    driver.setAvailIndex(jump)
    driver.kick()
    #expect(device.seen.isEmpty)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func avail_indexJumpOfExactlySize_passes() {
    for head in 0..<8 as Range<UInt16> {
      driver.describe(head, data, 16, flags: write)
      driver.poke(head, at: driver.queues[0].avail + 4 + 2 * UInt64(head))
    }
    driver.setAvailIndex(8)
    driver.kick()
    #expect(driver.takeUsed().map(\.head) == Array(0..<8))
  }

  @Test func avail_indexGoesBackwards_setsNeedsReset() {
    driver.add(0, [.writable(data, 1)])
    driver.add(0, [.writable(data, 1)])
    driver.kick()
    driver.setAvailIndex(1)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func avail_indexWraps_everyChainIsSeenOnce() {
    driver.start(size: 256)
    var total = 0
    while total < 0x1_0000 + 300 {
      var added = 0
      while added < 200, driver.add(0, [.writable(data, 4)]) != nil { added += 1 }
      driver.kick()
      let used = driver.takeUsed()
      guard used.count == added else {
        Issue.record("\(used.count) of \(added) came back after \(total)")
        return
      }
      total += added
    }
    #expect(!driver.needsReset)
  }

  @Test func avail_ringEntryGarbage_setsNeedsReset() {
    driver.describe(0, data, 16, flags: write)
    driver.offer(0)
    driver.poke(0xdead as UInt16, at: driver.queues[0].avail + 4)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func avail_garbageBehindTheIndex_isNotLookedAt() {
    driver.fill(driver.queues[0].avail + 4, 16, 0xff)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.takeUsed().count == 1)
    #expect(!driver.needsReset)
  }

  /// What was pushed before the mistake stays with the device: after DEVICE_NEEDS_RESET the ring no longer moves.
  @Test func avail_goodThenBad_ringStopsAtTheMistake() {
    driver.add(0, [.writable(data, 16)])
    driver.offer(0xffff)
    driver.kick()
    #expect(device.seen.count == 1)
    expectNeedsResetAndRecovery(driver)
  }
}

@Suite("Family 3: indirect descriptors") struct IndirectTests {
  let device = RecordingDevice()
  let driver: TestDriver
  let table = data + 0x8000

  init() throws {
    driver = try TestDriver(device)
    driver.start(CommonFeature.indirectDescriptors, size: 8)
  }

  private func offerTable(_ address: UInt64, _ length: UInt32, flags: UInt16 = indirect, next index: UInt16 = 0) {
    driver.describe(0, address, length, flags: flags, next: index)
    driver.offer(0)
    driver.kick()
  }

  @Test func indirect_wellFormed_passes() {
    driver.describe(table: table, 0, data, 100, flags: next, next: 2)
    driver.describe(table: table, 2, data + 0x1000, 200, flags: write)
    offerTable(table, 48)
    #expect(driver.takeUsed() == [Used(head: 0, written: 200)])
    #expect(device.seen.first?.readableBytes == 100)
  }

  @Test func indirect_behindDirectDescriptors_passes() {
    driver.describe(0, data, 100, flags: next, next: 1)
    driver.describe(1, table, 16, flags: indirect)
    driver.describe(table: table, 0, data + 0x1000, 200, flags: write)
    driver.offer(0)
    driver.kick()
    #expect(driver.takeUsed() == [Used(head: 0, written: 200)])
  }

  @Test func indirect_notNegotiated_setsNeedsReset() {
    driver.start(size: 8)
    driver.describe(table: table, 0, data, 100, flags: write)
    offerTable(table, 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func indirect_nested_setsNeedsReset() {
    driver.describe(table: table, 0, table + 0x100, 16, flags: indirect)
    driver.describe(table: table + 0x100, 0, data, 16, flags: write)
    offerTable(table, 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func indirect_pointingAtItself_setsNeedsReset() {
    driver.describe(table: table, 0, table, 16, flags: indirect)
    offerTable(table, 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func indirect_withNext_setsNeedsReset() {
    driver.describe(table: table, 0, data, 16, flags: write)
    offerTable(table, 16, flags: indirect | next, next: 1)
    expectNeedsResetAndRecovery(driver)
  }

  @Test(arguments: [0, 1, 15, 17, 0x10_0010, 0xffff_fff0, 0xffff_ffff] as [UInt32])
  func indirect_badLength_setsNeedsReset(length: UInt32) {
    driver.describe(table: table, 0, data, 16, flags: write)
    offerTable(table, length)
    expectNeedsResetAndRecovery(driver)
  }

  @Test(arguments: [0x40_0000, 0x3f_fff8, 0xd000_0000, 0xffff_ffff_ffff_fff0] as [UInt64])
  func indirect_tableOutsideRAM_setsNeedsReset(address: UInt64) {
    offerTable(address, 16)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func indirect_tableEndingAtTheLastByteOfRAM_passes() {
    let table: UInt64 = 0x40_0000 - 16
    driver.describe(table: table, 0, data, 16, flags: write)
    offerTable(table, 16)
    #expect(driver.takeUsed() == [Used(head: 0, written: 16)])
  }

  @Test func indirect_loopInside_setsNeedsReset() {
    driver.describe(table: table, 0, data, 16, flags: next, next: 1)
    driver.describe(table: table, 1, data, 16, flags: next, next: 0)
    offerTable(table, 32)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func indirect_nextBeyondTheTable_setsNeedsReset() {
    driver.describe(table: table, 0, data, 16, flags: next, next: 2)
    driver.describe(table: table, 2, data, 16, flags: write)
    offerTable(table, 32)
    expectNeedsResetAndRecovery(driver)
  }

  @Test func indirect_chainOfExactlyQueueSize_passes() {
    for index in 0..<8 as Range<UInt16> {
      driver.describe(table: table, index, data, 16, flags: index == 7 ? write : write | next, next: index + 1)
    }
    offerTable(table, 128)
    #expect(driver.takeUsed() == [Used(head: 0, written: 128)])
  }

  @Test func indirect_chainLongerThanTheQueue_setsNeedsReset() {
    for index in 0..<9 as Range<UInt16> {
      driver.describe(table: table, index, data, 16, flags: index == 8 ? write : write | next, next: index + 1)
    }
    offerTable(table, 144)
    expectNeedsResetAndRecovery(driver)
  }

  /// However long the chain says it is, what the device marks as written stays within what the queue admits.
  @Test func indirect_hugeTable_marksNoMoreThanTheRings() {
    for index in 0..<0x1000 as Range<UInt16> {
      driver.describe(table: data, index, data, 4096, flags: write | next, next: index + 1)
    }
    _ = harvest(driver.memory)
    offerTable(data, 0x1_0000)
    #expect(harvest(driver.memory).count <= 3)
    expectNeedsResetAndRecovery(driver)
  }
}

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

  @Test func ring_acrossTheHole_isRefused() {
    driver.negotiate()
    #expect(driver.setUpQueue(0, size: 8, descriptors: Self.low - 64) == 0)
    #expect(driver.setUpQueue(0, size: 8, used: Self.low - 8) == 0)
    #expect(driver.mmio.mistakes[.queueSetup] > 0)
    #expect(driver.setUpQueue(0, size: 8, descriptors: Self.low - 128, used: Self.high) == 1)
  }
}

@Suite("Family 6: direction") struct DirectionTests {
  let device = RecordingDevice()
  let driver: TestDriver

  init() throws {
    driver = try TestDriver(device)
    driver.start(size: 8)
  }

  @Test func chain_readableAfterWritable_setsNeedsReset() {
    driver.describe(0, data, 16, flags: write | next, next: 1)
    driver.describe(1, data + 16, 16, flags: 0)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func chain_readableBetweenWritable_setsNeedsReset() {
    driver.describe(0, data, 16, flags: next, next: 1)
    driver.describe(1, data, 16, flags: write | next, next: 2)
    driver.describe(2, data, 16, flags: next, next: 3)
    driver.describe(3, data, 16, flags: write)
    driver.offer(0)
    driver.kick()
    expectNeedsResetAndRecovery(driver)
  }

  @Test func readOnlyDescriptor_isNeverWritten() throws {
    let driver = try TestDriver(Entropy())
    driver.start(size: 8)
    driver.fill(data, 64, 0x11)
    driver.add(0, [.readable(data, 64)])
    driver.kick()
    #expect(driver.takeUsed() == [Used(head: 0, written: 0)])
    #expect(driver.bytes(data, 64) == [UInt8](repeating: 0x11, count: 64))
    #expect(driver.mmio.mistakes[.request] == 1)
  }
}
