internal import GuestMemory

/// A bzImage (Documentation/arch/x86/boot.rst): setup header, and the protected-mode part, entered 0x200 bytes in.
struct BzImage: Equatable {
  /// The setup header as the file has it, from offset 0x1f1; copied into the zero page.
  let setupHeader: [UInt8]
  let payload: Range<Int>
  let loadAddress: UInt64
  /// End of the memory the kernel uses before it knows its memory map.
  let end: UInt64
  let initrdLimit: UInt64
  /// Longest command line, without the NUL.
  let commandLineLimit: Int
  var entry: UInt64 { loadAddress + 0x200 }

  static func matches(_ file: [UInt8]) -> Bool {
    file.count > 0x206 && file[0x1fe] == 0x55 && file[0x1ff] == 0xaa && file[0x202..<0x206].elementsEqual("HdrS".utf8)
  }

  init(_ file: [UInt8], memory: GuestMemory) throws(BootError) {
    guard Self.matches(file), file.count >= 0x268 else { throw .bzImageTooShort }
    func field<T: FixedWidthInteger>(_ offset: Int, _: T.Type) -> T {
      (0..<T.bitWidth / 8).reversed().reduce(0) { $0 << 8 | T(file[offset + $1]) }
    }
    let version = field(0x206, UInt16.self)
    guard version >= 0x20c else { throw .bzImageTooOld(version: version) }
    let kernel64: UInt16 = 1
    guard field(0x236, UInt16.self) & kernel64 != 0 else { throw .bzImageNot64Bit }
    // The jump instruction's offset byte tells where the header ends.
    let headerEnd = 0x202 + Int(file[0x201])
    guard headerEnd >= 0x268, headerEnd <= file.count, headerEnd <= 0x2d0 else { throw .bzImageTooShort }
    setupHeader = Array(file[0x1f1..<headerEnd])
    let sectors = file[0x1f1] == 0 ? 4 : Int(file[0x1f1])
    let start = (sectors + 1) * 512
    guard start + 0x200 < file.count else { throw .bzImageTooShort }
    payload = start..<file.count

    loadAddress = field(0x258, UInt64.self)
    let needed = max(UInt64(field(0x260, UInt32.self)), UInt64(payload.count))
    guard loadAddress >= BootLayout.kernelStart else {
      throw .segmentOverlapsBootStructures(address: loadAddress, count: needed)
    }
    guard memory.fileOffset(of: loadAddress, count: needed) != nil else {
      throw .bzImageNeedsMoreRAM(end: loadAddress.addingReportingOverflow(needed).partialValue)
    }
    end = loadAddress + needed
    initrdLimit = UInt64(field(0x22c, UInt32.self)) + 1
    commandLineLimit = min(Int(field(0x238, UInt32.self)), 0xfffe)
  }

  func load(_ file: [UInt8], into memory: GuestMemory) throws(BootError) {
    try memory.put(Array(file[payload]), at: loadAddress)
  }
}
