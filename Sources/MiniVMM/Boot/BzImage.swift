internal import GuestMemory

/// A bzImage (Documentation/arch/x86/boot.rst): setup header, and the protected-mode part, entered 0x200 bytes in.
struct BzImage: Equatable {
  /// The setup header as the file has it, from offset 0x1f1; copied into the zero page.
  let setupHeader: [UInt8]
  /// Where the protected-mode part begins in the file, and its size.
  let payloadOffset: UInt64
  let payloadSize: UInt64
  let loadAddress: UInt64
  /// End of the memory the kernel uses before it knows its memory map.
  let end: UInt64
  let initrdLimit: UInt64
  /// Longest command line, without the NUL.
  let commandLineLimit: Int
  var entry: UInt64 { loadAddress + 0x200 }

  /// - Parameter head: the file's first bytes.
  static func matches(_ head: [UInt8]) -> Bool {
    head.count > 0x206 && head[0x1fe] == 0x55 && head[0x1ff] == 0xaa && head[0x202..<0x206].elementsEqual("HdrS".utf8)
  }

  init(_ file: BootFile, head: [UInt8], memory: GuestMemory) throws(BootError) {
    guard Self.matches(head), head.count >= 0x268 else { throw .bzImageTooShort }
    let version = head.field(0x206, UInt16.self)
    guard version >= 0x20c else { throw .bzImageTooOld(version: version) }
    let kernel64: UInt16 = 1
    guard head.field(0x236) & kernel64 != 0 else { throw .bzImageNot64Bit }
    // The jump instruction's offset byte tells where the header ends.
    let headerEnd = 0x202 + Int(head[0x201])
    guard headerEnd >= 0x268, headerEnd <= head.count, headerEnd <= 0x2d0 else { throw .bzImageTooShort }
    setupHeader = Array(head[0x1f1..<headerEnd])
    let sectors = head[0x1f1] == 0 ? 4 : UInt64(head[0x1f1])
    payloadOffset = (sectors + 1) * 512
    guard payloadOffset + 0x200 < file.size else { throw .bzImageTooShort }
    payloadSize = file.size - payloadOffset

    loadAddress = head.field(0x258)
    let needed = max(UInt64(head.field(0x260, UInt32.self)), payloadSize)
    guard loadAddress >= BootLayout.kernelStart else {
      throw .segmentOverlapsBootStructures(address: loadAddress, count: needed)
    }
    guard memory.fileOffset(of: loadAddress, count: needed) != nil else {
      throw .bzImageNeedsMoreRAM(end: loadAddress.addingReportingOverflow(needed).partialValue)
    }
    end = loadAddress + needed
    initrdLimit = UInt64(head.field(0x22c, UInt32.self)) + 1
    commandLineLimit = min(Int(head.field(0x238, UInt32.self)), 0xfffe)
  }

  func load(_ file: BootFile, into memory: GuestMemory) throws(BootError) {
    try file.load(at: payloadOffset, count: payloadSize, into: memory, at: loadAddress)
  }
}
