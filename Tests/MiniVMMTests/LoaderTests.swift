import GuestMemory
import StateCodec
import Testing

@testable import MiniVMM

@Suite("Family 17: loader") struct LoaderTests {
  private let memory: GuestMemory
  private let valid = TestELF(code: Code.powerOff)

  init() throws { memory = try GuestMemory(size: 16 << 20) }

  private func load(_ bytes: [UInt8], initrd: [UInt8]? = nil, line: String = "", _ entry: BootProtocol = .auto) throws
    -> EntryPoint
  {
    let file = MemoryFile(bytes)
    let ramdisk = initrd.map { MemoryFile($0) }
    return try BootSource(
      kernel: file.descriptor, initrd: ramdisk?.descriptor, commandLine: line, bootProtocol: entry
    ).load(into: memory, cpus: 2)
  }

  private func error(_ change: (inout TestELF) -> Void) -> BootError? {
    var elf = valid
    change(&elf)
    do {
      _ = try load(elf.bytes)
      return nil
    } catch { return error as? BootError }
  }

  @Test func auto_takesThePVHNote() throws {
    #expect(try load(valid.bytes) == .pvh(0x20_0000))
    #expect(try memory.bytes(at: 0x20_0000, count: 11) == Code.powerOff)
    #expect(try memory.load(UInt32.self, at: BootLayout.startInfo) == 0x336e_c578)
  }

  @Test func auto_withoutNote_isLinux64() throws {
    #expect(try load(TestELF(code: Code.powerOff, pvhEntry: nil).bytes) == .linux64(0x20_0000))
    #expect(try memory.load(UInt16.self, at: BootLayout.zeroPage + 0x1fe) == 0xaa55)
    #expect(try memory.load(UInt8.self, at: BootLayout.zeroPage + 0x1e8) == 3)
  }

  @Test func pvh_withoutNote_isRefused() {
    #expect(throws: BootError.noPVHNote) { try load(TestELF(code: Code.powerOff, pvhEntry: nil).bytes, .pvh) }
  }

  @Test func sharedObjectType_isAccepted() { #expect(error { $0.type = 3 } == nil) }

  @Test func otherTypesAndMachines_areRefused() {
    #expect(error { $0.type = 1 } == .notELF64ForX86)
    #expect(error { $0.machine = 183 } == .notELF64ForX86)
  }

  @Test func programHeaders_mustLieInTheFile() {
    #expect(error { $0.programHeaderOffset = .max } != nil)
    #expect(error { $0.programHeaderOffset = .max - 55 } != nil)
    #expect(error { $0.programHeaderOffset = 1 << 40 } != nil)
    #expect(error { $0.programHeaderCount = 0xfffe } != nil)
    #expect(error { $0.programHeaderCount = 0xffff } != nil)
    #expect(error { $0.programHeaderCount = 0 } == .noLoadableSegment)
    #expect(error { $0.programHeaderSize = 0 } != nil)
    #expect(error { $0.programHeaderSize = 55 } == .programHeaderSize(55))
    #expect(error { $0.programHeaderSize = 0xffff } != nil)
  }

  @Test func segment_mustLieInTheFile() {
    #expect(error { $0.segments[0].1 = .max } == .segmentPastEndOfFile(segment: 0))
    #expect(error { $0.segments[0].1 = 1 << 20 } == .segmentPastEndOfFile(segment: 0))
    #expect(error { ($0.segments[0].3, $0.segments[0].4) = (1 << 20, 1 << 20) } == .segmentPastEndOfFile(segment: 0))
    #expect(error { ($0.segments[0].3, $0.segments[0].4) = (.max, .max) } == .segmentPastEndOfFile(segment: 0))
    #expect(error { $0.segments[1].3 = .max } == .segmentPastEndOfFile(segment: 1))
  }

  @Test func segment_isNotLargerInTheFileThanInMemory() {
    #expect(error { $0.segments[0].4 = 3 } == .segmentFileSizeAboveMemorySize(segment: 0))
  }

  @Test func segment_mustLieInRAM() {
    #expect(error { $0.segments[0].2 = 16 << 20 } == .segmentOutsideRAM(address: 16 << 20, count: 11))
    #expect(error { $0.segments[0].2 = (16 << 20) - 10 } == .segmentOutsideRAM(address: (16 << 20) - 10, count: 11))
    #expect(error { $0.segments[0].2 = .max - 3 } == .segmentOutsideRAM(address: .max - 3, count: 11))
    #expect(error { $0.segments[0].4 = .max } == .segmentOutsideRAM(address: 0x20_0000, count: .max))
    #expect(error { $0.segments[0].2 = 0xc000_0000 } == .segmentOutsideRAM(address: 0xc000_0000, count: 11))
  }

  @Test(arguments: [0, 0x6000, 0x9000, 0x2_0000, 0x9_fc00, 0xf_ffff] as [UInt64])
  func segment_mustNotCoverBootStructures(address: UInt64) {
    #expect(
      error { $0.segments[0].2 = address } == .segmentOverlapsBootStructures(address: address, count: 11))
  }

  @Test func segments_mustNotOverlap() {
    #expect(error { $0.segments.append((1, 0x1000, 0x20_0005, 4, 4)) } == .segmentsOverlap(address: 0x20_0005))
    #expect(error { $0.segments.append((1, 0x1000, 0x1f_fffd, 4, 4)) } == .segmentsOverlap(address: 0x20_0000))
  }

  /// A kernel with debugging sections: what counts is what goes into RAM. A terabyte would not fit on the heap.
  @Test func fileLargerThanRAM_isJudgedByItsSegments() throws {
    for size: UInt64 in [400 << 20, 1 << 40] {
      let file = MemoryFile(valid.bytes, size: size)
      #expect(try BootSource(kernel: file.descriptor).load(into: memory, cpus: 1) == .pvh(0x20_0000))
    }
    let image = MemoryFile(bzImage, size: 1 << 40)
    #expect(throws: BootError.bzImageNeedsMoreRAM(end: (1 << 40) + 0x40_0000 - 5 * 512)) {
      try BootSource(kernel: image.descriptor).load(into: memory, cpus: 1)
    }
    #expect(throws: BootError.self) {
      try BootSource(kernel: MemoryFile(valid.bytes).descriptor, initrd: image.descriptor).load(into: memory, cpus: 1)
    }
  }

  /// As many segments as a header can count, each pair of them apart: no more work than sorting them.
  @Test func mostSegments_load() throws {
    var file = valid.bytes
    let count: UInt16 = 0xffff
    file.replaceSubrange(32..<40, with: StateWriter.bytes { $0.put(UInt64(file.count)) })
    file.replaceSubrange(56..<58, with: StateWriter.bytes { $0.put(count) })
    file += StateWriter.bytes { out in
      for index in 0..<UInt64(count) {
        out.put(UInt64(1))
        out.put(TestELF.contentsOffset)
        out.put(UInt64(0))
        out.put(0x20_0000 + index * 16)
        out.put(UInt64(1))
        out.put(UInt64(16))
        out.put(UInt64(4))
      }
    }
    #expect(try load(file) == .linux64(0x20_0000))
  }

  /// Notes whose sizes go past their segment, and beyond what a number holds.
  @Test(arguments: [UInt32.max, UInt32.max - 3, 0x8000_0000, 17]) func spoiledNote_isNoEntry(size: UInt32) {
    for field in [0, 4] {
      let changed = error { elf in
        let at = Code.powerOff.count + field
        for index in 0..<4 { elf.contents[at + index] = UInt8(truncatingIfNeeded: size >> UInt32(index * 8)) }
      }
      #expect(changed == nil)
      #expect(throws: BootError.noPVHNote) {
        var elf = valid
        let at = Code.powerOff.count + field
        for index in 0..<4 { elf.contents[at + index] = UInt8(truncatingIfNeeded: size >> UInt32(index * 8)) }
        _ = try load(elf.bytes, .pvh)
      }
    }
  }

  @Test func entry_mustLieInASegment() {
    #expect(throws: BootError.entryOutsideImage(0x70_0000)) {
      try load(TestELF(code: Code.powerOff, pvhEntry: 0x70_0000).bytes)
    }
    #expect(throws: BootError.entryOutsideImage(.max)) {
      var elf = TestELF(code: Code.powerOff, pvhEntry: nil)
      elf.entry = .max
      _ = try load(elf.bytes)
    }
    // With a note that names a good one.
    #expect(throws: BootError.entryOutsideImage(.max)) {
      var elf = valid
      elf.entry = .max
      _ = try load(elf.bytes, .linux64)
    }
  }

  @Test func everyTruncation_isAnErrorOrLoads() {
    let whole = valid.bytes
    for length in 1..<whole.count where length < 200 || length % 64 == 0 { _ = try? load(Array(whole[..<length])) }
  }

  @Test func everySpoiledHeaderByte_isAnErrorOrLoads() {
    let whole = valid.bytes
    for position in 4..<176 {
      for value: UInt8 in [0, 1, 0x7f, 0x80, 0xff] {
        var spoiled = whole
        spoiled[position] = value
        _ = try? load(spoiled)
      }
    }
  }

  @Test func whatIsNoKernel_isNamed() {
    #expect(throws: BootError.kernelIsText) { try load(Array("#!/bin/sh\necho hello\n".utf8)) }
    #expect(throws: BootError.kernelIsCompressed("gzip")) { try load([0x1f, 0x8b, 8, 0]) }
    #expect(throws: BootError.unknownKernelFormat) { try load([0, 1, 2, 3]) }
  }

  @Test func commandLine_isBounded() throws {
    _ = try load(valid.bytes, line: String(repeating: "x", count: 2047))
    #expect(try memory.load(UInt8.self, at: BootLayout.commandLine + 2047) == 0)
    #expect(throws: BootError.commandLineTooLong(bytes: 2048, limit: 2047)) {
      try load(valid.bytes, line: String(repeating: "x", count: 2048))
    }
    #expect(throws: BootError.commandLineHasNUL) { try load(valid.bytes, line: "a\0b") }
  }

  @Test func initrd_liesAtTheTopOfRAM_orIsRefused() throws {
    _ = try load(valid.bytes, initrd: [1, 2, 3])
    #expect(try memory.bytes(at: (16 << 20) - 4096, count: 3) == [1, 2, 3])
    #expect(try memory.load(UInt64.self, at: BootLayout.modules) == (16 << 20) - 4096)
    #expect(throws: BootError.self) { try load(valid.bytes, initrd: [UInt8](repeating: 1, count: 15 << 20)) }
  }

  // MARK: bzImage

  private var bzImage: [UInt8] {
    var file = [UInt8](repeating: 0, count: 5 * 512 + 0x400)
    func set<T: FixedWidthInteger>(_ offset: Int, _ value: T) {
      for index in 0..<T.bitWidth / 8 { file[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8)) }
    }
    set(0x1f1, UInt8(4))
    set(0x1fe, UInt16(0xaa55))
    set(0x200, UInt16(0x6aeb))
    set(0x202, UInt32(0x5372_6448))
    set(0x206, UInt16(0x20f))
    set(0x22c, UInt32(0x7fff_ffff))
    set(0x236, UInt16(1))
    set(0x238, UInt32(100))
    set(0x258, UInt64(0x40_0000))
    set(0x260, UInt32(0x10_0000))
    return file
  }

  @Test func bzImage_isEnteredByItsHeader() throws {
    #expect(try load(bzImage) == .linux64(0x40_0200))
    #expect(throws: BootError.commandLineTooLong(bytes: 101, limit: 100)) {
      try load(bzImage, line: String(repeating: "x", count: 101))
    }
    #expect(throws: BootError.protocolNotForBzImage) { try load(bzImage, .pvh) }
  }

  @Test func bzImage_spoiledHeader_isAnErrorOrLoads() {
    for position in 0x1f1..<0x268 {
      for value: UInt8 in [0, 1, 0x7f, 0x80, 0xff] {
        var spoiled = bzImage
        spoiled[position] = value
        _ = try? load(spoiled)
      }
    }
    for length in stride(from: 1, to: bzImage.count, by: 13) { _ = try? load(Array(bzImage[..<length])) }
  }

  @Test func bzImage_shortOld_or32Bit_isRefused() {
    #expect(throws: BootError.bzImageTooShort) { try load(Array(bzImage[..<0x240])) }
    var old = bzImage
    old[0x206] = 0x0b
    #expect(throws: BootError.bzImageTooOld(version: 0x20b)) { try load(old) }
    var no64 = bzImage
    no64[0x236] = 0
    #expect(throws: BootError.bzImageNot64Bit) { try load(no64) }
    var large = bzImage
    large[0x263] = 0x40
    #expect(throws: BootError.self) { try load(large) }
  }

  @Test func mpTable_sumsToZeroAndCountsItsEntries() throws {
    _ = try load(valid.bytes)
    let pointer = try memory.bytes(at: BootLayout.mpTable, count: 16)
    #expect(pointer.reduce(0, &+) == 0)
    let length = Int(try memory.load(UInt16.self, at: BootLayout.mpTable + 20))
    let table = try memory.bytes(at: BootLayout.mpTable + 16, count: length)
    #expect(table.reduce(0, &+) == 0)
    #expect(try memory.load(UInt16.self, at: BootLayout.mpTable + 16 + 34) == 2 + 1 + 1 + 24 + 2)
  }
}
