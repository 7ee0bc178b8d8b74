import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import Testing
import VirtioLayout

private let data = TestDriver.buffers
private let write = VirtqueueDescriptor.write

@Suite("Family 7: changed while read") struct ChangedWhileReadTests {
  @Test func chain_descriptorsRewrittenAfterThePop_copyIsUsed() throws {
    let device = RecordingDevice()
    let driver = try TestDriver(device)
    driver.start()
    driver.add(0, [.readable(data, 8), .writable(data + 0x1000, 16)])
    device.onPop {
      for index in 0..<8 as Range<UInt16> {
        driver.describe(index, UInt64.max - 3, 0xffff_ffff, flags: 0xffff, next: 0xffff)
      }
    }
    driver.kick()
    #expect(driver.takeUsed().map(\.written) == [16])
    #expect(driver.bytes(data + 0x1000, 17) == [UInt8](repeating: 0xa5, count: 16) + [0])
    #expect(!driver.needsReset)
  }

  @Test func avail_indexRewrittenBetweenPops_isCheckedAgain() throws {
    let device = RecordingDevice()
    let driver = try TestDriver(device)
    driver.start()
    driver.add(0, [.writable(data, 16)])
    device.onPop { driver.setAvailIndex(0x4000) }
    driver.kick()
    #expect(device.seen.count == 1)
    #expect(driver.needsReset)
  }

  /// The header that was checked is the header that is sent.
  @Test func net_headerRewrittenDuringSend_checkedCopyIsSent() throws {
    let backend = try MemoryBackend(offloads: MemoryBackend.allOffloads)
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(queueCount: 2)
    driver.fill(data, 12, 0)
    driver.add(1, [.readable(data, 12 + 60)])
    backend.beforeSend { driver.fill(data, 12, 0xff) }
    driver.kick(1)
    #expect(backend.sent.map(\.header) == [[UInt8](repeating: 0, count: 12)])
  }

  @Test func blk_headerRewrittenAfterSubmission_firstReadingCounts() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start()
    for _ in 0..<50 {
      driver.poke(BlockRangeSegment(sector: 0, sectorCount: 8, flags: 0), at: TestDisk.data(0))
      disk.add(driver, BlockRequestType.writeZeroes, sector: 0, count: 16)
      driver.write(MMIORegister.queueNotify, 0)
      driver.mmio.ready(tag: 0, events: 1)
      // The worker has the request: what RAM says now makes no difference.
      driver.poke(BlockRangeSegment(sector: 8, sectorCount: 0xffff_ffff, flags: 0xff), at: TestDisk.data(0))
      #expect(driver.collect(1).count == 1)
    }
    #expect(disk.contents(0, 4096) == [UInt8](repeating: 0, count: 4096))
    #expect(disk.contents(8 * 512, 512) == TestDisk.pattern(sector: 8, count: 512))
  }

  /// Another vCPU rewrites descriptors all the time. Whatever the device makes of it, it writes where descriptors
  /// can point, and to the used ring.
  @Test(.timeLimit(.minutes(Environment.patience))) func ring_rewrittenAllTheTime_writesStayInside() throws {
    let driver = try TestDriver(RecordingDevice())
    let stop = Flag()
    driver.start(size: 16)
    let page = data + 0x10_0000
    let vcpu = try HostThread.start(name: "vcpu1") {
      var random = SplitMix64(seed: 7)
      while !stop.isSet {
        let index = UInt16(truncatingIfNeeded: random.next() % 16)
        let word = random.next()
        driver.poke(
          word & 7 == 0 ? word : page + (word >> 8 & 0x7ff), at: 0x1_0000 + 16 * UInt64(index))
        driver.poke(word & 7 == 1 ? UInt32(truncatingIfNeeded: word >> 9) : 16, at: 0x1_0000 + 16 * UInt64(index) + 8)
        driver.poke(UInt16(truncatingIfNeeded: word >> 20 & 3), at: 0x1_0000 + 16 * UInt64(index) + 12)
      }
    }
    for round in 0..<2000 {
      for _ in 0..<8 { driver.offer(UInt16(round % 16)) }
      driver.write(MMIORegister.queueNotify, 0)
      driver.run()
      _ = driver.takeUsed()
      if driver.needsReset { driver.start(size: 16) }
    }
    stop.set()
    vcpu.join()
    // No descriptor can name RAM below the page but by a chance of 1 in 2⁴⁰; the rings are pages 16, 17 and 18. A start that
    // clears an address between it and its length leaves one that names page 0.
    let zeros = [UInt8](repeating: 0, count: Int(driver.memory.size))
    let written = changedPages(zeros, contents(driver.memory)).filter { $0 < Int(page / 4096) }
    #expect(written.isSubset(of: [0, 16, 17, 18]))
    expectUsable(driver)
  }
}

@Suite("Family 8: used ring") struct UsedRingTests {
  @Test func used_indexWraps_entriesStayInStep() throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start(CommonFeature.eventIndex, size: 128)
    for round in 0..<(0x1_0000 / 128 + 4) {
      for index in 0..<128 as Range<UInt64> { driver.add(0, [.writable(data + index, 1)]) }
      driver.kick()
      #expect(driver.usedIndexes == [UInt16(truncatingIfNeeded: (round + 1) * 128)])
      #expect(driver.takeUsed().count == 128)
    }
  }

  @Test func used_lengthNeverExceedsWritableBytes() throws {
    let driver = try TestDriver(Entropy())
    driver.start()
    for length in [1, 2, 7, 4095, 4096, 4097, 100_000] as [UInt32] {
      driver.add(0, [.writable(data, length)])
      driver.kick()
      let written = driver.takeUsed().first?.written ?? 0
      #expect(written <= length)
      #expect(written == min(length, 4096))
      #expect(driver.bytes(data + UInt64(length), 64) == [UInt8](repeating: 0, count: 64))
    }
  }

  /// vring_need_event: an interrupt is due when the used index passes the event index, and only then.
  @Test(arguments: [0, 1, 2, 3, 0x7fff, 0x8000, 0xfffe, 0xffff] as [UInt16])
  func used_eventIndexPoisoned_interruptIsOnlyDelayed(event: UInt16) throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start(CommonFeature.eventIndex)
    driver.poke(event, at: driver.queues[0].avail + SplitRing.usedEventOffset(8))
    _ = driver.interrupts
    for _ in 0..<3 { driver.add(0, [.writable(data, 16)]) }
    driver.kick()
    #expect(driver.takeUsed().count == 3)
    // The index goes from 0 to 3 in one step.
    #expect((driver.interrupts != 0) == (event < 3))
    #expect(!driver.needsReset)
  }

  @Test func used_noInterruptFlag_isHonouredWithoutEventIndex() throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start()
    driver.poke(SplitRing.noInterrupt, at: driver.queues[0].avail)
    _ = driver.interrupts
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.interrupts == 0)
    driver.poke(0 as UInt16, at: driver.queues[0].avail)
    driver.add(0, [.writable(data, 16)])
    driver.kick()
    #expect(driver.interrupts == 1)
    #expect(driver.takeUsed().count == 2)
  }

  @Test func used_availEventFollowsTheRing() throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start(CommonFeature.eventIndex)
    for round in 1...20 as ClosedRange<UInt16> {
      driver.add(0, [.writable(data, 16)])
      driver.kick()
      _ = driver.takeUsed()
      #expect(driver.peek(UInt16.self, at: driver.queues[0].used + SplitRing.availEventOffset(8)) == round)
    }
  }

  /// A driver on one thread, the device thread on another, notifications and interrupts suppressed as the standard
  /// allows. A lost wake-up leaves both asleep, which the driver notices after two seconds.
  @Test(.timeLimit(.minutes(3 * Environment.patience)), arguments: [true, false])
  func used_stress_noWakeUpIsLostAndEntriesPrecedeTheIndex(eventIndex: Bool) throws {
    let driver = try TestDriver(RecordingDevice())
    driver.start(eventIndex ? CommonFeature.eventIndex : 0, size: 64)
    let thread = try HostThread.start(name: "device") { driver.loop.run() }
    defer {
      driver.loop.stop()
      thread.join()
    }
    let outcome = try RingStress(driver: driver, eventIndex: eventIndex, total: stressChains).run()
    #expect(outcome == .done)
    #expect(!driver.needsReset)
  }
}

/// Chains of the stress tests.
private let stressChains = 200_000

/// A driver's hot loop over one queue of 64 entries, each descriptor a chain.
private struct RingStress {
  enum Outcome: Equatable { case done, lostWakeUp(after: Int), wrongEntry(Int) }

  let driver: TestDriver
  let eventIndex: Bool
  let total: Int

  func run() throws -> Outcome {
    let memory = driver.memory
    let size = 64
    let ring = driver.queues[0]
    for index in 0..<UInt16(size) { driver.describe(index, data + 16 * UInt64(index), 4, flags: write) }
    var random = SplitMix64(seed: 99)
    var added = 0
    var done = 0
    while done < total {
      let batch = min(1 + Int(random.next() % 20), size - (added - done), total - added)
      if batch > 0 {
        let old = UInt16(truncatingIfNeeded: added)
        for _ in 0..<batch {
          driver.poke(UInt16(added % size), at: ring.avail + 4 + 2 * UInt64(added % size))
          // Poison, so that an entry read too early is seen.
          driver.poke(UInt64.max, at: ring.used + 4 + 8 * UInt64(added % size))
          added += 1
        }
        try memory.storeReleasing16(UInt16(truncatingIfNeeded: added), at: ring.avail + 2)
        atomicFence()
        if try wantsNotification(ring, from: old, to: UInt16(truncatingIfNeeded: added)) {
          driver.write(MMIORegister.queueNotify, 0)
        }
      }
      guard try reap(ring, &done, added) else { return .wrongEntry(done) }
      if done < total, added - done == size || added == total || random.next() % 4 == 0 {
        guard try sleep(ring, done, added, &random) else { return .lostWakeUp(after: done) }
      }
    }
    return .done
  }

  private func wantsNotification(_ ring: DriverQueue, from old: UInt16, to new: UInt16) throws -> Bool {
    if eventIndex {
      let event = try driver.memory.loadAcquiring16(at: ring.used + SplitRing.availEventOffset(ring.size))
      return SplitRing.passes(event: event, from: old, to: new)
    }
    return try driver.memory.loadAcquiring16(at: ring.used) & SplitRing.noNotify == 0
  }

  private func reap(_ ring: DriverQueue, _ done: inout Int, _ added: Int) throws -> Bool {
    let index = try driver.memory.loadAcquiring16(at: ring.used + 2)
    while UInt16(truncatingIfNeeded: done) != index {
      let entry: UInt64 = driver.peek(at: ring.used + 4 + 8 * UInt64(done % Int(ring.size)))
      guard done < added, entry == UInt64(done % Int(ring.size)) | 4 << 32 else { return false }
      done += 1
    }
    return true
  }

  /// Asks for an interrupt and waits for one, unless something has come back meanwhile; false when none comes.
  private func sleep(_ ring: DriverQueue, _ done: Int, _ added: Int, _ random: inout SplitMix64) throws -> Bool {
    guard added > done else { return true }
    let ahead = eventIndex ? Int(random.next() % UInt64(added - done)) : 0
    if eventIndex {
      try driver.memory.storeReleasing16(
        UInt16(truncatingIfNeeded: done + ahead), at: ring.avail + SplitRing.usedEventOffset(ring.size))
    } else {
      try driver.memory.storeReleasing16(0, at: ring.avail)
    }
    atomicFence()
    let deadline = Deadline(seconds: 2)
    while true {
      let index = try driver.memory.loadAcquiring16(at: ring.used + 2)
      if index &- UInt16(truncatingIfNeeded: done) > UInt16(ahead) { break }
      if deadline.passed { return false }
      HostThread.waitReadable(driver.line.descriptor, timeoutMilliseconds: 2000)
      _ = lx_eventfd_take(driver.line.descriptor)
    }
    if !eventIndex { try driver.memory.storeReleasing16(SplitRing.noInterrupt, at: ring.avail) }
    return true
  }
}
