import Devices
import Testing
import VirtioLayout

private let next = VirtqueueDescriptor.next
private let write = VirtqueueDescriptor.write
private let indirect = VirtqueueDescriptor.indirect
private let data = TestDriver.buffers

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
