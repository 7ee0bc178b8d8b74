internal import CElf
internal import GuestMemory

/// What an ELF kernel asks for: segments to copy, where to enter. Every number of the file is checked here, before any
/// byte of guest RAM is written.
struct ELFKernel: Equatable {
  struct Segment: Equatable {
    let fileRange: Range<Int>
    /// Guest-physical (p_paddr).
    let address: UInt64
    let memorySize: UInt64
    var end: UInt64 { address + memorySize }
  }

  let segments: [Segment]
  /// e_entry: of a vmlinux the physical address of startup_64.
  let entry: UInt64
  /// The 32-bit entry of a XEN_ELFNOTE_PHYS32_ENTRY note.
  let pvhEntry: UInt32?

  /// End of the highest segment in low RAM, zero-filled parts included.
  var end: UInt64 { segments.map(\.end).filter { $0 <= GuestMemory.holeStart }.max() ?? 0 }

  /// - Parameter memory: the RAM that the segments must lie in.
  init(_ file: [UInt8], memory: GuestMemory) throws(BootError) {
    var image = file
    let result = unsafe image.withUnsafeMutableBytes { buffer in
      Result { () throws(BootError) in
        guard elf_version(UInt32(EV_CURRENT)) != UInt32(EV_NONE),
          let elf = unsafe elf_memory(buffer.baseAddress?.assumingMemoryBound(to: CChar.self), buffer.count)
        else { throw BootError.libelf() }
        defer { unsafe elf_end(elf) }
        return unsafe try Self.read(elf, fileSize: buffer.count)
      }
    }
    let found = try result.get()
    segments = try Self.check(found.segments, memory: memory)
    entry = found.entry
    pvhEntry = found.pvhEntry
    // A note may name any address: the machine would start in zeroes.
    let segments = self.segments
    func inside(_ address: UInt64) -> Bool { segments.contains { $0.address <= address && address < $0.end } }
    if let pvhEntry, !inside(UInt64(pvhEntry)) { throw .entryOutsideImage(UInt64(pvhEntry)) }
    if pvhEntry == nil, !inside(entry) { throw .entryOutsideImage(entry) }
  }

  /// Copies the segments. RAM of a new machine is zero, so what lies behind the file's part needs no filling.
  func load(_ file: [UInt8], into memory: GuestMemory) throws(BootError) {
    for segment in segments where !segment.fileRange.isEmpty {
      try memory.put(Array(file[segment.fileRange]), at: segment.address)
    }
  }

  private typealias Found = (segments: [(index: Int, header: GElf_Phdr)], entry: UInt64, pvhEntry: UInt32?)

  private static func read(_ elf: OpaquePointer, fileSize: Int) throws(BootError) -> Found {
    var header = GElf_Ehdr()
    guard unsafe elf_kind(elf) == ELF_K_ELF, unsafe gelf_getclass(elf) == ELFCLASS64 else { throw .notELF64ForX86 }
    guard unsafe gelf_getehdr(elf, &header) != nil else { throw .libelf() }
    guard header.e_machine == UInt16(EM_X86_64), header.e_type == UInt16(ET_EXEC) || header.e_type == UInt16(ET_DYN)
    else { throw .notELF64ForX86 }
    let headerSize = MemoryLayout<Elf64_Phdr>.size
    guard header.e_phnum > 0 else { throw .noLoadableSegment }
    guard header.e_phentsize == UInt16(headerSize) else { throw .programHeaderSize(header.e_phentsize) }
    var count = 0
    guard unsafe elf_getphdrnum(elf, &count) == 0 else { throw .libelf() }
    let (tableSize, tooMany) = count.multipliedReportingOverflow(by: headerSize)
    guard !tooMany, tableSize <= fileSize, header.e_phoff <= UInt64(fileSize - tableSize) else {
      throw .programHeadersOutsideFile(offset: header.e_phoff, count: count)
    }

    var found: Found = ([], header.e_entry, nil)
    for index in 0..<count {
      var segment = GElf_Phdr()
      guard unsafe gelf_getphdr(elf, CInt(index), &segment) != nil else { throw .libelf() }
      switch segment.p_type {
      case UInt32(PT_LOAD):
        guard segment.p_filesz <= segment.p_memsz else { throw .segmentFileSizeAboveMemorySize(segment: index) }
        guard segment.p_filesz <= UInt64(fileSize), segment.p_offset <= UInt64(fileSize) - segment.p_filesz else {
          throw .segmentPastEndOfFile(segment: index)
        }
        if segment.p_memsz > 0 { found.segments.append((index, segment)) }
      case UInt32(PT_NOTE) where found.pvhEntry == nil:
        guard segment.p_filesz <= UInt64(fileSize), segment.p_offset <= UInt64(fileSize) - segment.p_filesz else {
          throw .segmentPastEndOfFile(segment: index)
        }
        found.pvhEntry = unsafe pvhNote(elf, segment)
      default: break
      }
    }
    return found
  }

  /// The entry address of the first XEN_ELFNOTE_PHYS32_ENTRY (18) by "Xen" in a note segment.
  private static func pvhNote(_ elf: OpaquePointer, _ segment: GElf_Phdr) -> UInt32? {
    let type = segment.p_align == 8 ? ELF_T_NHDR8 : ELF_T_NHDR
    guard
      let data = unsafe elf_getdata_rawchunk(elf, Int64(segment.p_offset), Int(segment.p_filesz), type),
      let bytes = unsafe UnsafeRawBufferPointer(start: data.pointee.d_buf, count: Int(data.pointee.d_size))
        as UnsafeRawBufferPointer?
    else { return nil }
    var offset = 0
    while true {
      var note = GElf_Nhdr()
      var nameOffset = 0
      var descriptorOffset = 0
      // 0 at the end and for a note that would go past it.
      offset = unsafe gelf_getnote(data, offset, &note, &nameOffset, &descriptorOffset)
      guard offset > 0 else { return nil }
      guard note.n_type == 18, note.n_namesz == 4, unsafe bytes[nameOffset..<nameOffset + 4].elementsEqual("Xen\0".utf8)
      else { continue }
      switch note.n_descsz {
      case 4: return unsafe bytes.loadUnaligned(fromByteOffset: descriptorOffset, as: UInt32.self)
      case 8: return unsafe UInt32(exactly: bytes.loadUnaligned(fromByteOffset: descriptorOffset, as: UInt64.self))
      default: continue
      }
    }
  }

  private static func check(
    _ found: [(index: Int, header: GElf_Phdr)], memory: GuestMemory
  ) throws(BootError) -> [Segment] {
    guard !found.isEmpty else { throw .noLoadableSegment }
    var segments: [Segment] = []
    for (_, header) in found {
      let (address, count) = (header.p_paddr, header.p_memsz)
      guard memory.fileOffset(of: address, count: count) != nil else {
        throw .segmentOutsideRAM(address: address, count: count)
      }
      guard address >= BootLayout.kernelStart else {
        throw .segmentOverlapsBootStructures(address: address, count: count)
      }
      if let other = segments.first(where: { address < $0.end && $0.address < address + count }) {
        throw .segmentsOverlap(address: max(address, other.address))
      }
      let start = Int(header.p_offset)
      segments.append(
        Segment(fileRange: start..<start + Int(header.p_filesz), address: address, memorySize: count))
    }
    return segments
  }
}

extension BootError {
  /// What libelf found wrong in the last call.
  fileprivate static func libelf() -> BootError {
    let error = elf_errno()
    guard error != 0, let text = unsafe elf_errmsg(error) else { return .badELF("no ELF header") }
    return .badELF(unsafe String(cString: text))
  }
}
