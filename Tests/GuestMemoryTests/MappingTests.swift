import Glibc
import GuestMemory
import Testing

@testable import GuestMemory

@Suite("Guest memory: mapping") struct MappingTests {
  /// Flags of the mappings of this process that begin where RAM, its second huge page or its checkpoint does
  /// (Documentation/filesystems/proc.rst, VmFlags).
  private func flags(_ memory: GuestMemory) throws -> [Set<Substring>] {
    let file = unsafe try #require(fopen("/proc/self/smaps", "r"))
    defer { unsafe fclose(file) }
    let (view, contents) = unsafe (
      UInt(bitPattern: memory.mapping.baseAddress), UInt(bitPattern: memory.contents.baseAddress)
    )
    let second = memory.size > GuestMemory.hugePageSize ? view + UInt(GuestMemory.hugePageSize) : view
    let starts = [view, second, contents].map { String($0, radix: 16) + "-" }
    var found: [Set<Substring>] = []
    var isOurs = false
    var line = [CChar](repeating: 0, count: 1024)
    while unsafe fgets(&line, 1024, file) != nil {
      let text = String(decoding: line.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      if text.first?.isHexDigit == true, text.contains("-") { isOurs = starts.contains { text.hasPrefix($0) } }
      if isOurs, text.hasPrefix("VmFlags:") { found.append(Set(text.split(whereSeparator: \.isWhitespace))) }
    }
    return found
  }

  /// One translation of 2 MiB fits where guest and process addresses begin at multiples of it.
  @Test(arguments: [2 << 20, 64 << 20, (3 << 30) + (16 << 20)] as [UInt64])
  func ram_beginsAtAHugePage_andAsksForThem(size: UInt64) throws {
    let memory = try GuestMemory(size: size)
    for region in memory.regions {
      let host = unsafe try #require(memory.hostPointer(at: region.start, count: region.size))
      #expect(region.start % GuestMemory.hugePageSize == 0)
      #expect(UInt64(UInt(bitPattern: host)) % GuestMemory.hugePageSize == 0)
    }
    let flags = try flags(memory)
    #expect(flags.allSatisfy { $0.contains("dd") }, "core dumps have it: \(flags)")
    #expect(!flags.contains { $0.contains("sh") }, "it is shared memory: \(flags)")
    guard unsafe access("/sys/kernel/mm/transparent_hugepage", F_OK) == 0 else { return }
    // A start writes a few pages of the first.
    #expect(flags.map { $0.contains("hg") } == (size > GuestMemory.hugePageSize ? [false, true] : [false]))
  }

  @Test func ramThatRollsBack_isNotDumpedEither() throws {
    let flags = try flags(GuestMemory(size: 4 << 20, rollsBack: true))
    #expect(flags.count == 2 && flags.allSatisfy { $0.contains("dd") })
  }

  @Test func hugePages_areRefused_whereTheyCannotBe() {
    #expect(throws: GuestMemoryError.notWholeHugePages(3 << 20)) { try GuestMemory(size: 3 << 20, hugePages: true) }
    #expect(throws: GuestMemoryError.hugePagesRollBack) {
      try GuestMemory(size: 4 << 20, rollsBack: true, hugePages: true)
    }
    do {
      _ = try GuestMemory(size: 1 << 40, hugePages: true)
      Issue.record("this host has a TiB of huge pages")
    } catch {
      let (free, total) = (GuestMemory.hugePages("free_hugepages"), GuestMemory.hugePages("nr_hugepages"))
      #expect(error == .noHugePages(needed: 1 << 19, free: free, total: total + 1 << 19 - free))
      #expect("\(error)".contains("sysctl vm.nr_hugepages="))
    }
  }

  /// The host's huge pages, where this may set some aside: they are taken at once, and given back.
  @Test(.enabled(if: geteuid() == 0, "sets huge pages of the host aside"))
  func hugePages_areTakenAtOnce() throws {
    let name = "/proc/sys/vm/nr_hugepages"
    func set(_ count: UInt64) throws {
      let file = unsafe try #require(fopen(name, "w"))
      unsafe fputs("\(count)\n", file)
      unsafe fclose(file)
    }
    let before = GuestMemory.hugePages("nr_hugepages")
    try set(before + 4)
    defer { try? set(before) }
    // A host whose memory is in pieces has none to give.
    try #require(GuestMemory.hugePages("nr_hugepages") == before + 4)
    do {
      let memory = try GuestMemory(size: 8 << 20, hugePages: true)
      #expect(GuestMemory.hugePages("resv_hugepages") >= 4)
      try memory.store(UInt64(7), at: (8 << 20) - 8)
      #expect(try memory.load(UInt64.self, at: (8 << 20) - 8) == 7)
      #expect(try #require(try flags(memory).first).contains("ht"))
      #expect(memory.touchedPages(from: 0) == 1536..<2048, "the last huge page")
    }
    #expect(GuestMemory.hugePages("free_hugepages") >= 4)
  }

  /// A snapshot reads no page that nobody has touched: else it would make page tables for all of RAM.
  @Test func touchedPages_areThoseThatWereWritten() throws {
    // Smaller than a huge page: each page is one.
    let memory = try GuestMemory(size: 1 << 20)
    for page: UInt64 in [3, 4, 255] { try memory.store(UInt8(1), at: page * GuestMemory.pageSize) }
    var found: [Int] = []
    var page = 0
    while let touched = memory.touchedPages(from: page) {
      found += touched
      page = touched.upperBound
    }
    #expect(found == [3, 4, 255])
    let big = try GuestMemory(size: 64 << 20)
    #expect(big.touchedPages(from: 0) == nil)
    try big.store(UInt8(1), at: 33 << 20)
    let touched = try #require(big.touchedPages(from: 0))
    #expect(touched.contains(33 << 8) && touched.count <= 512)
    #expect(big.touchedPages(from: touched.upperBound) == nil && big.touchedPages(from: 1 << 14) == nil)
  }

  /// What a private view shows need not be in its memory.
  @Test func touchedPages_ofRAMThatRollsBack_areAll() throws {
    let memory = try GuestMemory(size: 1 << 20, rollsBack: true)
    #expect(memory.touchedPages(from: 5) == 5..<256)
  }
}
