import GuestMemory
import Testing

@Suite("Guest memory: ranges") struct RangeTests {
  static let small: UInt64 = 4 << 20
  static let big: UInt64 = (3 << 30) + (16 << 20)

  @Test(arguments: [0, 1, 4096, (1 << 20) - 4096, (1 << 20) + 1, (1 << 40) + 4096, UInt64.max] as [UInt64])
  func size_unusable_isRefused(size: UInt64) {
    #expect(throws: GuestMemoryError.badSize(size)) { try GuestMemory(size: size) }
  }

  @Test func regions_splitAtTheHole() throws {
    let memory = try GuestMemory(size: Self.big)
    #expect(memory.regions.map(\.start) == [0, 0x1_0000_0000])
    #expect(memory.regions.map(\.size) == [0xc000_0000, 0x100_0000])
    #expect(memory.regions.map(\.fileOffset) == [0, 0xc000_0000])
    #expect(try GuestMemory(size: 3 << 30).regions.count == 1)
    #expect(try GuestMemory(size: (3 << 30) + 4096).regions.count == 2)
  }

  @Test(
    arguments: [
      (0, 0, 0), (0, 4 << 20, 0), ((4 << 20) - 1, 1, (4 << 20) - 1), (4 << 20, 0, 4 << 20), (4 << 20, 1, nil),
      ((4 << 20) - 1, 2, nil), (0, (4 << 20) + 1, nil), (UInt64.max, 1, nil), (UInt64.max, UInt64.max, nil),
      (1, UInt64.max, nil), (1 << 32, 0, nil), (1 << 32, 1, nil),
    ] as [(UInt64, UInt64, UInt64?)])
  func range_inSmallRAM(address: UInt64, count: UInt64, offset: UInt64?) throws {
    #expect(try GuestMemory(size: Self.small).fileOffset(of: address, count: count) == offset)
  }

  @Test(
    arguments: [
      ((3 << 30) - 1, 1, (3 << 30) - 1), ((3 << 30) - 1, 2, nil), (3 << 30, 1, nil), ((1 << 32) - 1, 1, nil),
      ((1 << 32) - 1, 2, nil), (1 << 32, 1, 3 << 30), (1 << 32, 16 << 20, 3 << 30), (1 << 32, (16 << 20) + 1, nil),
      ((1 << 32) + (16 << 20) - 1, 1, (3 << 30) + (16 << 20) - 1), ((1 << 32) + (16 << 20), 1, nil),
      ((3 << 30) - 1, 1 << 30 + 2, nil), (UInt64.max, 2, nil),
    ] as [(UInt64, UInt64, UInt64?)])
  func range_aroundTheHole(address: UInt64, count: UInt64, offset: UInt64?) throws {
    let memory = try GuestMemory(size: Self.big)
    #expect(memory.fileOffset(of: address, count: count) == offset)
    if let offset { #expect(memory.address(ofFileOffset: offset) == address) }
  }

  @Test func values_outsideRAM_throw() throws {
    let memory = try GuestMemory(size: Self.small)
    #expect(throws: GuestMemoryError.outsideRAM(address: Self.small - 3, count: 4)) {
      try memory.load(UInt32.self, at: Self.small - 3)
    }
    #expect(throws: GuestMemoryError.outsideRAM(address: UInt64.max, count: 8)) {
      try memory.store(1 as UInt64, at: UInt64.max)
    }
    #expect(throws: GuestMemoryError.outsideRAM(address: Self.small, count: 1)) {
      try memory.write([1], at: Self.small)
    }
    #expect(throws: GuestMemoryError.outsideRAM(address: 1, count: Self.small)) {
      try memory.bytes(at: 1, count: Int(Self.small))
    }
    #expect(memory.dirty.count == 1024)
    var pages = PageSet(count: memory.pageCount)
    memory.dirty.harvest(into: &pages)
    #expect(pages.population == 0)
  }

  @Test func values_unaligned_roundTrip() throws {
    let memory = try GuestMemory(size: Self.small)
    try memory.store(0x0102_0304_0506_0708 as UInt64, at: 4093)
    #expect(try memory.load(UInt64.self, at: 4093) == 0x0102_0304_0506_0708)
    #expect(try memory.bytes(at: 4093, count: 3) == [8, 7, 6])
  }

  @Test func ringWords_misaligned_areRefused() throws {
    let memory = try GuestMemory(size: Self.small)
    #expect(throws: GuestMemoryError.self) { try memory.loadAcquiring16(at: 1) }
    #expect(throws: GuestMemoryError.self) { try memory.storeReleasing16(1, at: 3) }
    #expect(throws: GuestMemoryError.self) { try memory.load64(at: 4) }
    #expect(throws: GuestMemoryError.self) { try memory.load64(at: Self.small) }
    #expect(try memory.load64(at: Self.small - 8) == 0)
  }
}

@Suite("Guest memory: dirty pages") struct DirtyTests {
  private func harvest(_ memory: GuestMemory) -> [Int] {
    var pages = PageSet(count: memory.pageCount)
    memory.dirty.harvest(into: &pages)
    var list: [Int] = []
    pages.forEach { list.append($0) }
    return list
  }

  @Test func store_marksEveryPageItTouches() throws {
    let memory = try GuestMemory(size: 4 << 20)
    try memory.store(1 as UInt8, at: 4095)
    #expect(harvest(memory) == [0])
    try memory.store(1 as UInt16, at: 4095)
    #expect(harvest(memory) == [0, 1])
    try memory.write([UInt8](repeating: 1, count: 4096 * 3), at: 4096 * 10 + 1)
    #expect(harvest(memory) == [10, 11, 12, 13])
    try memory.storeReleasing16(1, at: (4 << 20) - 2)
    #expect(harvest(memory) == [1023])
    #expect(harvest(memory) == [])
  }

  @Test func mark_emptyOrOutsideRAM_isIgnored() throws {
    let memory = try GuestMemory(size: 4 << 20)
    memory.markDirty(address: 0, count: 0)
    memory.markDirty(address: 4 << 20, count: 1)
    memory.markDirty(address: UInt64.max, count: UInt64.max)
    #expect(harvest(memory) == [])
  }

  @Test(arguments: [(0, 0), (0, 63), (63, 64), (0, 64), (1, 200), (64, 127), (130, 1023), (1023, 1023), (0, 1023)])
  func mark_rangesAcrossWords_areExact(first: Int, last: Int) throws {
    let memory = try GuestMemory(size: 4 << 20)
    memory.markDirty(address: UInt64(first) * 4096, count: UInt64(last - first) * 4096 + 1)
    #expect(harvest(memory) == Array(first...last))
  }

  @Test func mark_highMemory_usesFilePages() throws {
    let memory = try GuestMemory(size: (3 << 30) + (16 << 20))
    memory.markDirty(address: 1 << 32, count: 1)
    #expect(harvest(memory) == [3 << 18])
  }

  @Test func pageSet_operations() {
    var a = PageSet(count: 130)
    a.insert(0)
    a.insert(129)
    a.formUnion([0, 1].span, fromWord: 0)
    #expect(a.population == 3)
    a.formUnion([1 << 1, 1 << 1].span, fromWord: 1)
    #expect(a.population == 4)
    #expect(a.contains(65) && a.contains(64))
    #expect([0, 64, 129].allSatisfy(a.contains))
    #expect(!a.contains(128))
    a.removeAll()
    #expect(a == PageSet(count: 130))
    a.insertAll()
    #expect(a.population == 130)
  }
}

@Suite("Guest memory: buffers") struct GuestBuffersTests {
  private func buffers(_ pieces: [(UInt64, UInt64)], _ memory: GuestMemory) -> GuestBuffers {
    var buffers = GuestBuffers()
    for (address, count) in pieces { _ = buffers.append(address: address, count: count, in: memory) }
    return buffers
  }

  @Test func append_outsideRAMOrTooMuch_isRefused() throws {
    let memory = try GuestMemory(size: 3 << 30)
    var buffers = GuestBuffers()
    let refused = [(UInt64.max, UInt64(1)), (0, UInt64.max), (1, UInt64.max - 1), (3 << 30, 1), (0, (3 << 30) + 1)]
      .map { buffers.append(address: $0, count: $1, in: memory) }
    #expect(refused.allSatisfy { !$0 })
    #expect(buffers.count == 0 && buffers.pieces.isEmpty)
    let sums = [3 << 30, (1 << 30) - 1, 1].map { buffers.append(address: 0, count: $0, in: memory) }
    #expect(sums == [true, true, false])
    #expect(buffers.count == UInt64(UInt32.max))
    let wraps = buffers.append(address: 0, count: UInt64.max, in: memory)
    #expect(!wraps)
  }

  @Test func scatterAndGather_crossPieces() throws {
    let memory = try GuestMemory(size: 4 << 20)
    let parts = buffers([(100, 3), (5000, 1), (9000, 10)], memory)
    #expect(memory.scatter(0x0807_0605_0403_0201 as UInt64, to: parts, offset: 1))
    #expect(try memory.bytes(at: 100, count: 4) == [0, 1, 2, 0])
    #expect(try memory.bytes(at: 5000, count: 2) == [3, 0])
    #expect(try memory.bytes(at: 9000, count: 6) == [4, 5, 6, 7, 8, 0])
    #expect(memory.gather(UInt64.self, parts, offset: 1) == 0x0807_0605_0403_0201)
    #expect(memory.gather(UInt64.self, parts, offset: 6) == 0x08_0706)
    #expect(memory.gather(UInt64.self, parts, offset: 7) == nil)
    #expect(memory.gather(UInt8.self, parts, offset: UInt64.max) == nil)
  }

  @Test func scatter_beyondTheEnd_isClippedAndMarksWhatItWrote() throws {
    let memory = try GuestMemory(size: 4 << 20)
    let parts = buffers([(4096, 2), (3 * 4096, 2), (5 * 4096, 100)], memory)
    let small = buffers([(4096, 2), (3 * 4096, 2)], memory)
    #expect(!memory.scatter(UInt64.max, to: small, offset: 0))
    var pages = PageSet(count: memory.pageCount)
    memory.dirty.harvest(into: &pages)
    #expect(pages.contains(1) && pages.contains(3) && pages.population == 2)
    pages.removeAll()
    memory.markDirty(parts, offset: 4, count: 1)
    memory.dirty.harvest(into: &pages)
    #expect(pages.contains(5) && pages.population == 1)
  }
}
