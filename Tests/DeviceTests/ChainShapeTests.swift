import Devices
import Testing
import VirtioLayout

private let next = VirtqueueDescriptor.next
private let write = VirtqueueDescriptor.write
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
