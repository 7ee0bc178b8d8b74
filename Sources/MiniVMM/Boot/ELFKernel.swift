internal import GuestMemory

/// What an ELF kernel asks for: segments to copy, where to enter. Every number of the file is checked here, before any
/// byte of guest RAM is written.
struct ELFKernel: Equatable {
  struct Segment: Equatable {
    let fileOffset: UInt64
    let fileSize: UInt64
    /// Guest-physical (p_paddr).
    let address: UInt64
    let memorySize: UInt64
    var end: UInt64 { address + memorySize }
  }

  /// By address.
  let segments: [Segment]
  /// e_entry: of a vmlinux the physical address of startup_64.
  let entry: UInt64
  /// The 32-bit entry of a XEN_ELFNOTE_PHYS32_ENTRY note.
  let pvhEntry: UInt32?

  /// End of the highest segment in low RAM, zero-filled parts included.
  var end: UInt64 { segments.map(\.end).filter { $0 <= GuestMemory.holeStart }.max() ?? 0 }

  private static let headerSize = 64
  private static let programHeaderSize = 56

  /// - Parameter memory: the RAM that the segments must lie in.
  init(_ file: BootFile, memory: GuestMemory) throws(BootError) {
    let header = try file.bytes(at: 0, limit: Self.headerSize)
    let (elf64, littleEndian, x86_64): (UInt8, UInt8, UInt16) = (2, 1, 62)
    guard header.count == Self.headerSize, header[4] == elf64, header[5] == littleEndian,
      header.field(18) == x86_64, [2, 3].contains(header.field(16, UInt16.self))  // ET_EXEC, ET_DYN
    else { throw .notELF64ForX86 }
    entry = header.field(24)
    let offset = header.field(32, UInt64.self)
    let count = Int(header.field(56, UInt16.self))
    guard count > 0 else { throw .noLoadableSegment }
    guard header.field(54, UInt16.self) == Self.programHeaderSize else { throw .programHeaderSize(header.field(54)) }
    guard file.has(UInt64(count * Self.programHeaderSize), at: offset) else {
      throw .programHeadersOutsideFile(offset: offset, count: count)
    }
    let table = try file.bytes(at: offset, limit: count * Self.programHeaderSize)

    var found: [Segment] = []
    var pvhEntry: UInt32?
    var notesLeft = Self.notesLimit
    for index in 0..<count {
      let at = index * Self.programHeaderSize
      let segment = Segment(
        fileOffset: table.field(at + 8), fileSize: table.field(at + 32), address: table.field(at + 24),
        memorySize: table.field(at + 40))
      let (load, note): (UInt32, UInt32) = (1, 4)
      switch table.field(at, UInt32.self) {
      case load:
        guard segment.fileSize <= segment.memorySize else { throw .segmentFileSizeAboveMemorySize(segment: index) }
        guard file.has(segment.fileSize, at: segment.fileOffset) else { throw .segmentPastEndOfFile(segment: index) }
        if segment.memorySize > 0 { found.append(segment) }
      case note where pvhEntry == nil:
        guard file.has(segment.fileSize, at: segment.fileOffset) else { throw .segmentPastEndOfFile(segment: index) }
        let notes = try file.bytes(at: segment.fileOffset, limit: Int(min(segment.fileSize, notesLeft)))
        notesLeft -= UInt64(notes.count)
        pvhEntry = Self.pvhNote(notes, alignment: table.field(at + 48, UInt64.self) == 8 ? 8 : 4)
      default: break
      }
    }
    segments = try Self.check(found, memory: memory)
    self.pvhEntry = pvhEntry
  }

  /// Header and notes may name any address: the machine would start in zeroes.
  func checkEntry(_ address: UInt64) throws(BootError) {
    guard segments.contains(where: { $0.address <= address && address < $0.end }) else {
      throw .entryOutsideImage(address)
    }
  }

  /// Copies the segments. RAM of a new machine is zero, so what lies behind the file's part needs no filling.
  func load(_ file: BootFile, into memory: GuestMemory) throws(BootError) {
    for segment in segments where segment.fileSize > 0 {
      try file.load(at: segment.fileOffset, count: segment.fileSize, into: memory, at: segment.address)
    }
  }

  /// Bytes of notes that are looked at, in all; a vmlinux has less than a thousand.
  private static let notesLimit: UInt64 = 1 << 16

  /// The entry address of the first XEN_ELFNOTE_PHYS32_ENTRY (18) by "Xen" among notes: sizes of name and descriptor, type, name,
  /// descriptor, each of the latter padded.
  private static func pvhNote(_ bytes: [UInt8], alignment: Int) -> UInt32? {
    var offset = 0
    while bytes.count - offset >= 12 {
      let (nameSize, size) = (Int(bytes.field(offset, UInt32.self)), Int(bytes.field(offset + 4, UInt32.self)))
      let type = bytes.field(offset + 8, UInt32.self)
      // Two sums of two 32-bit numbers: no overflow.
      let name = offset + 12
      let descriptor = (name + nameSize + alignment - 1) / alignment * alignment
      guard descriptor + size <= bytes.count else { return nil }
      if type == 18, bytes[name..<name + nameSize].elementsEqual("Xen\0".utf8) {
        switch size {
        case 4: return bytes.field(descriptor)
        case 8: return UInt32(exactly: bytes.field(descriptor, UInt64.self))
        default: break
        }
      }
      offset = (descriptor + size + alignment - 1) / alignment * alignment
    }
    return nil
  }

  private static func check(_ found: [Segment], memory: GuestMemory) throws(BootError) -> [Segment] {
    guard !found.isEmpty else { throw .noLoadableSegment }
    for segment in found {
      let (address, count) = (segment.address, segment.memorySize)
      guard memory.fileOffset(of: address, count: count) != nil else {
        throw .segmentOutsideRAM(address: address, count: count)
      }
      guard address >= BootLayout.kernelStart else {
        throw .segmentOverlapsBootStructures(address: address, count: count)
      }
    }
    let segments = found.sorted { $0.address < $1.address }
    for (lower, upper) in zip(segments, segments.dropFirst()) where upper.address < lower.end {
      throw .segmentsOverlap(address: upper.address)
    }
    return segments
  }
}
