import CLinux
import Devices
import Glibc
import GuestMemory
import Testing
import VirtioLayout

/// One chain as the fuzzer wrote it into the rings.
private struct Chain {
  var head: UInt16
  var writable: [(address: UInt64, length: UInt64)]
  var writableBytes: UInt64 { writable.reduce(0) { $0 + $1.length } }
}

@Suite("Fuzz: devices", .serialized) struct FuzzTests {
  /// Any register access, in any order, with rings that may or may not be there: nothing traps, and the device can be
  /// reset.
  @Test(arguments: FuzzKind.allCases) func registers_anyAccess_neverTraps(kind: FuzzKind) throws {
    print("fuzz \(kind.rawValue) registers: MINIVMM_FUZZ_SEED=\(FuzzSettings.seed)")
    var random = SplitMix64(seed: FuzzSettings.seed ^ 0x1111)
    let subject = try FuzzSubject(kind)
    defer { subject.end() }
    let driver = subject.driver
    let offsets = Array(stride(from: 0, through: 0x110, by: 4)).map(UInt64.init)
    let values: [UInt64] = [
      0, 1, 2, 3, 7, 8, 11, 15, 16, 64, 128, 256, 0x1_0000, 0x1_1000, 0x1_2000, 0xffff_fff0, .max,
    ]
    let deadline = Deadline(seconds: FuzzSettings.share / 3)
    var rounds = 0
    while !deadline.passed {
      for _ in 0..<200 {
        let offset =
          random.next() % 16 == 0 ? random.next() % 0x1000 : offsets[Int(random.next() % UInt64(offsets.count))]
        let size = random.next() % 8 == 0 ? [1, 2, 4, 8][Int(random.next() % 4)] : 4
        let pick = random.next() % UInt64(values.count + 1)
        let value = pick < UInt64(values.count) ? values[Int(pick)] : random.next()
        if random.next() % 3 == 0 {
          _ = driver.mmio.read(offset: offset, size: size)
        } else {
          driver.mmio.write(offset: offset, size: size, value: value)
        }
        if random.next() % 64 == 0 {
          driver.negotiate(random.next() & 0x3fff_ffff)
          for queue in 0..<subject.queueCount { driver.setUpQueue(queue, size: 16) }
          driver.setStatus(driver.status | DeviceStatus.driverOK)
        }
        if random.next() % 16 == 0 { driver.poke(random.next(), at: 0x1_0000 + random.next() % 0x7ff0) }
        if random.next() % 8 == 0 { subject.work(&random) }
      }
      rounds += 1
      guard subject.isUsableAfterReset() else {
        Issue.record("not usable after a reset, seed \(FuzzSettings.seed), round \(rounds)")
        return
      }
    }
    #expect(rounds > 0)
  }

  /// Chains made well and then spoilt: nothing traps; the device writes only where a chain it was given lets it, marks
  /// what it writes, says no more than it may have written, and uses no more chains than it was given.
  @Test(arguments: FuzzKind.allCases) func chains_mutated_writesStayInsideAndAreMarked(kind: FuzzKind) throws {
    print("fuzz \(kind.rawValue) chains: MINIVMM_FUZZ_SEED=\(FuzzSettings.seed)")
    var random = SplitMix64(seed: FuzzSettings.seed ^ 0x2222)
    let subject = try FuzzSubject(kind)
    defer { subject.end() }
    let driver = subject.driver
    let deadline = Deadline(seconds: FuzzSettings.share)
    var rounds = 0
    var completed = 0
    while !deadline.passed {
      let size = UInt16(1) << UInt16(2 + random.next() % 4)
      let features: [UInt64] = [
        CommonFeature.eventIndex, CommonFeature.indirectDescriptors, NetFeature.mergeableBuffers,
      ]
      let wanted = features.reduce(0) { random.next() % 2 == 0 ? $0 | $1 : $0 } & driver.offeredFeatures
      driver.start(wanted, size: size, queueCount: subject.queueCount)
      for step in 0..<8 {
        let queue = Int(random.next() % UInt64(subject.queueCount))
        offer(subject, queue, &random)
        let offered = driver.queues.indices.map { describeOffered(driver, $0) }
        driver.write(MMIORegister.queueNotify, UInt32(queue))
        let before = contents(driver.memory)
        let indexBefore = driver.usedIndexes
        _ = harvest(driver.memory)
        subject.work(&random)
        let context = "seed \(FuzzSettings.seed), round \(rounds), step \(step)"
        guard check(subject, offered, before, indexBefore, context, &completed) else { return }
        if driver.needsReset { break }
      }
      rounds += 1
      if rounds % 8 == 0 {
        guard subject.isUsableAfterReset() else {
          Issue.record("not usable after a reset, seed \(FuzzSettings.seed), round \(rounds)")
          return
        }
      }
    }
    #expect(completed > 0, "the fuzzer never got a chain through: it tests nothing")
  }

  /// A second thread rewrites rings and requests while the device works on them: nothing traps, what is written is
  /// marked, the device can be reset.
  @Test func rings_changedConcurrently_neverTrapAndWritesAreMarked() throws {
    for kind in FuzzKind.allCases {
      print("fuzz \(kind.rawValue) concurrent: MINIVMM_FUZZ_SEED=\(FuzzSettings.seed)")
      var random = SplitMix64(seed: FuzzSettings.seed ^ 0x3333)
      let subject = try FuzzSubject(kind)
      defer { subject.end() }
      let driver = subject.driver
      let stop = Flag()
      let seed = FuzzSettings.seed ^ 0x4444
      let vcpu = try HostThread.start(name: "vcpu1") {
        var random = SplitMix64(seed: seed)
        while !stop.isSet {
          // Rings, tables and headers; the data pages are left for the comparison below.
          let at = 0x1_0000 + random.next() % 0x8000
          switch random.next() % 3 {
          case 0: driver.poke(UInt8(truncatingIfNeeded: random.next()), at: at)
          case 1: driver.poke(UInt16(truncatingIfNeeded: random.next() % 64), at: at & ~1)
          default: driver.poke(0x8_0000 + random.next() % 0x4_0000, at: at & ~15)
          }
          if random.next() % 4096 == 0 { usleep(100) }  // leaves the device a share of one core
        }
      }
      let deadline = Deadline(seconds: FuzzSettings.share / 3)
      var failure: String?
      while !deadline.passed, failure == nil {
        driver.start(
          random.next() % 2 == 0 ? CommonFeature.indirectDescriptors : 0, size: 16, queueCount: subject.queueCount)
        for _ in 0..<16 {
          let queue = Int(random.next() % UInt64(subject.queueCount))
          offer(subject, queue, &random)
          let before = contents(driver.memory)
          _ = harvest(driver.memory)
          driver.write(MMIORegister.queueNotify, UInt32(queue))
          subject.work(&random)
          // The other thread's pages (16 to 23) change by themselves.
          let missed = changedPages(before, contents(driver.memory)).subtracting(harvest(driver.memory))
            .subtracting(16...23)
          if !missed.isEmpty { failure = "pages \(missed.sorted()) written and not marked" }
        }
      }
      stop.set()
      vcpu.join()
      #expect(failure == nil, "seed \(FuzzSettings.seed)")
      #expect(subject.isUsableAfterReset(), "seed \(FuzzSettings.seed)")
    }
  }

  // MARK: Making chains

  /// Writes up to a few chains with everything in order, spoils some of it, and offers them. Buffers live in
  /// 0x80000 ..< 0xc0000, indirect tables in 0x18000 ..< 0x20000. What is left and right of buffers is canary.
  private func offer(_ subject: FuzzSubject, _ queue: Int, _ random: inout SplitMix64) {
    let driver = subject.driver
    let size = driver.queues[queue].size
    driver.queues[queue].free = Array((0..<size).reversed())
    driver.queues[queue].chains = [:]
    driver.queues[queue].lastUsed = driver.usedIndexes[queue]
    for index in 0..<UInt64(0x4000) where index % 8 == 0 { driver.poke(random.next(), at: 0x8_0000 + index) }
    for _ in 0...random.next() % 3 {
      let buffers = skeleton(subject.kind, queue, driver, &random)
      driver.add(queue, Array(buffers.prefix(Int(size))))
    }
    for _ in 0..<random.next() % 3 { spoil(driver, queue, &random) }
  }

  private func skeleton(_ kind: FuzzKind, _ queue: Int, _ driver: TestDriver, _ random: inout SplitMix64) -> [Buffer] {
    func place(_ length: UInt64) -> UInt64 { 0x8_0000 + random.next() % (0x4_0000 - length) }
    switch (kind, queue) {
    case (.entropy, _):
      return (0...random.next() % 3).map { _ in .writable(place(5000), UInt32(1 + random.next() % 5000)) }
    case (.block, _):
      let header = place(16)
      let types = [0, 0, 0, 1, 4, 8, 11, 13, 99] as [UInt32]
      let type = types[Int(random.next() % UInt64(types.count))]
      driver.poke(BlockRequestHeader(type: type, sector: random.next() % 130), at: header)
      let length = UInt32([512, 1024, 4096, 20, 16, 32, 513][Int(random.next() % 7)])
      let isRead = type != 1 && type != 11 && type != 13
      let payload = place(4096)
      if type == 11 || type == 13 {
        driver.poke(
          BlockRangeSegment(sector: random.next() % 130, sectorCount: 1, flags: UInt32(random.next() % 2)), at: payload)
      }
      return [
        .readable(header, 16), isRead ? .writable(payload, length) : .readable(payload, length), .writable(place(1), 1),
      ]
    case (.net, 0): return (0...random.next() % 2).map { _ in .writable(place(4096), UInt32(1 + random.next() % 4096)) }
    case (.net, _):
      let header = place(12)
      driver.poke(0 as UInt64, at: header)
      driver.poke(0 as UInt32, at: header + 8)
      if random.next() % 4 == 0 { driver.poke(random.next() & 0x00ff_ffff_ffff_0101, at: header) }
      return [.readable(header, 12), .readable(place(4096), UInt32(14 + random.next() % 3000))]
    }
  }

  /// One thing wrong with a ring, chosen among what drivers get wrong.
  private func spoil(_ driver: TestDriver, _ queue: Int, _ random: inout SplitMix64) {
    let ring = driver.queues[queue]
    let index = UInt64(random.next() % UInt64(ring.size))
    let descriptor = ring.descriptors + 16 * index
    switch random.next() % 12 {
    case 0: driver.poke(random.next(), at: descriptor)
    case 1: driver.poke(0xf_ff00 + random.next() % 0x200, at: descriptor)
    case 2: driver.poke(UInt32(truncatingIfNeeded: random.next()), at: descriptor + 8)
    case 3: driver.poke(0 as UInt32, at: descriptor + 8)
    case 4: driver.poke(UInt16(truncatingIfNeeded: random.next() % 16), at: descriptor + 12)
    case 5: driver.poke(UInt16(truncatingIfNeeded: random.next() % UInt64(ring.size + 2)), at: descriptor + 14)
    case 6: driver.poke(UInt16(truncatingIfNeeded: random.next()), at: ring.avail + 4 + 2 * index)
    case 7: driver.setAvailIndex(UInt16(truncatingIfNeeded: random.next()), queue: queue)
    case 8:
      driver.poke(UInt16(truncatingIfNeeded: random.next()), at: ring.avail + SplitRing.usedEventOffset(ring.size))
    case 9, 10:
      let table = 0x1_8000 + 0x100 * index
      for entry in 0..<4 as Range<UInt16> {
        let last = entry == 3 || random.next() % 3 == 0
        driver.describe(
          table: table, entry, 0x8_0000 + random.next() % 0x3_f000, UInt32(1 + random.next() % 600),
          flags: (last ? 0 : 1) | (random.next() % 2 == 0 ? 2 : 0) | (random.next() % 16 == 0 ? 4 : 0),
          next: random.next() % 8 == 0 ? UInt16(random.next() % 6) : entry + 1)
      }
      driver.describe(
        queue: queue, UInt16(index), table, [64, 64, 64, 48, 17, 0][Int(random.next() % 6)], flags: 4)
    default:
      driver.poke(
        UInt8(truncatingIfNeeded: random.next()), at: ring.descriptors + random.next() % (16 * UInt64(ring.size)))
    }
  }

  /// Walks what is in the avail ring the way the standard says, without believing any of it: the chains the device may
  /// take, and where each lets it write.
  private func describeOffered(_ driver: TestDriver, _ queue: Int) -> [Chain] {
    let ring = driver.queues[queue]
    let offeredIndex: UInt16 = driver.peek(at: ring.avail + 2)
    // Those not used yet, which the device may have looked at already.
    let count = min(offeredIndex &- driver.usedIndexes[queue], ring.size)
    return (0..<count).map { position in
      let slot = (driver.usedIndexes[queue] &+ position) % ring.size
      let head: UInt16 = driver.peek(at: ring.avail + 4 + 2 * UInt64(slot))
      return Chain(head: head, writable: writable(driver, ring, head))
    }
  }

  private func writable(_ driver: TestDriver, _ ring: DriverQueue, _ head: UInt16) -> [(
    address: UInt64, length: UInt64
  )] {
    var pieces: [(address: UInt64, length: UInt64)] = []
    var table = ring.descriptors
    var count = UInt64(ring.size)
    var index = UInt64(head)
    for _ in 0...Int(ring.size) + 1 {
      guard index < count, driver.memory.fileOffset(of: table + 16 * index, count: 16) != nil else { break }
      let at = table + 16 * index
      let descriptor = VirtqueueDescriptor(low: driver.peek(at: at), high: driver.peek(at: at + 8))
      if descriptor.flags & VirtqueueDescriptor.indirect != 0 {
        table = descriptor.address
        count = UInt64(descriptor.length) / 16
        index = 0
        continue
      }
      if descriptor.flags & VirtqueueDescriptor.write != 0,
        driver.memory.fileOffset(of: descriptor.address, count: UInt64(descriptor.length)) != nil
      {
        pieces.append((descriptor.address, UInt64(descriptor.length)))
      }
      guard descriptor.flags & VirtqueueDescriptor.next != 0 else { break }
      index = UInt64(descriptor.nextIndex)
    }
    return pieces
  }

  // MARK: Checking

  private func check(
    _ subject: FuzzSubject, _ offered: [[Chain]], _ before: [UInt8], _ indexBefore: [UInt16],
    _ context: String, _ completed: inout Int
  ) -> Bool {
    let driver = subject.driver
    let after = contents(driver.memory)
    let changed = changedPages(before, after)
    let missed = changed.subtracting(harvest(driver.memory))
    guard missed.isEmpty else {
      Issue.record("pages \(missed.sorted()) written and not marked, \(context)")
      return false
    }
    // Writes: used rings, and buffers of chains that may be with the device, on either queue.
    var allowed: [Range<UInt64>] = driver.queues.map { $0.used..<$0.used + SplitRing.usedSize($0.size) }
    allowed += offered.joined().flatMap { $0.writable.map { $0.address..<$0.address + $0.length } }
    for page in changed {
      for offset in page * 4096..<(page + 1) * 4096 where before[offset] != after[offset] {
        guard allowed.contains(where: { $0.contains(UInt64(offset)) }) else {
          Issue.record("byte 0x\(String(offset, radix: 16)) written outside every writable buffer, \(context)")
          return false
        }
      }
    }
    for queue in driver.queues.indices {
      let advance = driver.usedIndexes[queue] &- indexBefore[queue]
      guard Int(advance) <= offered[queue].count else {
        Issue.record("\(advance) chains used of \(offered[queue].count), \(context)")
        return false
      }
      driver.queues[queue].lastUsed = indexBefore[queue]
      for used in driver.takeUsed(queue) {
        completed += 1
        let limit = offered[queue].filter { $0.head == used.head }.map(\.writableBytes).max()
        guard let limit, UInt64(used.written) <= limit else {
          Issue.record("\(used.written) bytes written of \(String(describing: limit)) writable, \(context)")
          return false
        }
      }
    }
    return true
  }
}
