import Glibc
import GuestMemory
import Harness
import Testing

@Suite("RAM that rolls back") struct RollBackTests {
  private static let page = Int(GuestMemory.pageSize)

  private func fill(_ memory: GuestMemory, _ page: Int, _ byte: UInt8) -> Bool {
    let contents = [UInt8](repeating: byte, count: Self.page)
    return unsafe contents.withUnsafeBytes { unsafe memory.setCheckpointPage(page, $0) }
  }

  private func first(_ memory: GuestMemory, _ page: Int) throws -> UInt8 {
    try memory.load(at: UInt64(page * Self.page))
  }

  @Test func writes_areForgotten_andTheCheckpointStays() throws {
    let memory = try GuestMemory(size: 4 << 20, rollsBack: true)
    #expect(fill(memory, 7, 0x11) && fill(memory, 9, 0x22))
    try memory.store(UInt8(0x77), at: UInt64(7 * Self.page))
    #expect(try first(memory, 7) == 0x77)
    #expect(unsafe memory.checkpointPage(7)?[0] == 0x11, "the private view keeps it out")
    var written = PageSet(count: memory.pageCount)
    memory.dirty.harvest(into: &written)
    #expect(written.population == 1 && written.contains(7))
    #expect(memory.rollBack(written) == 0)
    #expect(try first(memory, 7) == 0x11)
    #expect(try first(memory, 9) == 0x22)
  }

  @Test func newCheckpoint_showsAtOnceWhereNothingWasWritten_andAfterRollBackElsewhere() throws {
    let memory = try GuestMemory(size: 4 << 20, rollsBack: true)
    #expect(try first(memory, 3) == 0)
    try memory.store(UInt8(0x77), at: UInt64(4 * Self.page))
    #expect(fill(memory, 3, 0x33) && fill(memory, 4, 0x44))
    #expect(try first(memory, 3) == 0x33)
    #expect(try first(memory, 4) == 0x77)
    var written = PageSet(count: memory.pageCount)
    for page in [4, 5, 6] { written.insert(page) }
    #expect(memory.rollBack(written) == 0)
    #expect(try first(memory, 4) == 0x44)
  }

  /// Runs of every shape: each page rolls back exactly when it is in the set.
  @Test func rollBack_takesTheSetAndNothingElse() throws {
    let memory = try GuestMemory(size: 1 << 20, rollsBack: true)
    for page in 0..<memory.pageCount { try memory.store(UInt8(0xaa), at: UInt64(page * Self.page)) }
    let chosen = [0, 1, 2, 5, 63, 64, 65, 127, 200, 255]
    var pages = PageSet(count: memory.pageCount)
    for page in chosen { pages.insert(page) }
    #expect(memory.rollBack(pages) == 0)
    for page in 0..<memory.pageCount { #expect(try first(memory, page) == (chosen.contains(page) ? 0 : 0xaa)) }
  }

  /// Again and again, with random pages written by the guest and by checkpoints: the view is the checkpoint each time.
  @Test(arguments: 1...8) func rollBacksInARow_leaveTheCheckpoint(seed: UInt64) throws {
    let memory = try GuestMemory(size: 1 << 20, rollsBack: true)
    var chance = SeededGenerator(seed: seed)
    var held = [UInt8](repeating: 0, count: memory.pageCount)
    for round in 0..<40 {
      var changed = PageSet(count: memory.pageCount)
      // Few, so that many are written twice in a row, and many are not.
      for _ in 0..<60 {
        let page = chance.number(0...99)
        changed.insert(page)
        let byte = UInt8(chance.number(0...255))
        if chance.number(0...1) == 0 {
          #expect(fill(memory, page, byte))
          held[page] = byte
        } else {
          try memory.store(byte, at: UInt64(page * Self.page))
        }
      }
      #expect(memory.rollBack(changed) == 0)
      for page in held.indices { #expect(try first(memory, page) == held[page], "round \(round), page \(page)") }
    }
  }

  /// A page of the view's own is not the memfd's: bit 61 of its entry in /proc/self/pagemap (PM_FILE) is clear.
  private func isOwn(_ memory: GuestMemory, _ page: Int) throws -> Bool {
    guard let host = unsafe memory.hostPointer(at: UInt64(page * Self.page), count: 1) else { return false }
    var entry: UInt64 = 0
    let file = unsafe open("/proc/self/pagemap", O_RDONLY)
    defer { close(file) }
    let place = off_t(UInt(bitPattern: host) / UInt(Self.page) * 8)
    guard unsafe pread(file, &entry, 8, place) == 8 else {
      throw GuestMemoryError.system(operation: "pagemap", errno: errno)
    }
    return entry >> 63 == 1 && entry >> 61 & 1 == 0
  }

  @Test func pagesWrittenEachTime_areKept_andOthersGivenBack() throws {
    let memory = try GuestMemory(size: 1 << 20, rollsBack: true)
    var pages = PageSet(count: memory.pageCount)
    func roll(_ written: [Int], staged: [Int] = []) throws {
      pages.removeAll()
      for page in written + staged { pages.insert(page) }
      for page in written { try memory.store(UInt8(0x77), at: UInt64(page * Self.page)) }
      #expect(memory.rollBack(pages) == 0)
    }
    try roll([3, 4])
    #expect(try !isOwn(memory, 3) && !isOwn(memory, 4))
    try roll([3, 5], staged: [4])
    #expect(try isOwn(memory, 3) && !isOwn(memory, 4) && !isOwn(memory, 5))
    try roll([3], staged: [4, 5])
    #expect(try isOwn(memory, 3) && !isOwn(memory, 4) && !isOwn(memory, 5))
    try roll([])
    #expect(try !isOwn(memory, 3) && first(memory, 3) == 0)
  }

  @Test func checkpointPages_outsideOrOfAnotherSize_areRefused() throws {
    let memory = try GuestMemory(size: 1 << 20, rollsBack: true)
    #expect(!fill(memory, -1, 1) && !fill(memory, 256, 1))
    #expect(unsafe [UInt8](repeating: 1, count: 100).withUnsafeBytes { unsafe !memory.setCheckpointPage(0, $0) })
    #expect(unsafe memory.checkpointPage(256) == nil)
    let plain = try GuestMemory(size: 1 << 20)
    #expect(!fill(plain, 0, 1))
    #expect(plain.rollBack(PageSet(count: plain.pageCount)) != 0)
  }
}
