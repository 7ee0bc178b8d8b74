internal import GuestMemory
internal import StateCodec

/// Where boot structures lie in the first megabyte, and what the guest is told about its memory.
enum BootLayout {
  static let gdt: UInt64 = 0x500
  static let startInfo: UInt64 = 0x6000
  static let modules: UInt64 = 0x6040
  static let memoryMap: UInt64 = 0x6080
  static let zeroPage: UInt64 = 0x7000
  /// PML4, PDPT and four page directories.
  static let pageTables: UInt64 = 0x9000
  static let commandLine: UInt64 = 0x2_0000
  /// The last KiB of base memory, one of the places Linux looks for an MP table.
  static let mpTable: UInt64 = 0x9_fc00
  /// ACPI's root pointer, one of the places Linux looks for it, and its tables behind it.
  static let rsdp: UInt64 = 0xe_0000
  /// Kernel segments may not begin below: everything above is inside the first megabyte.
  static let kernelStart: UInt64 = 0x10_0000
  /// Initrds stay below, so that 32-bit fields and early page tables reach them.
  static let initrdLimit: UInt64 = GuestMemory.holeStart

  struct MemoryRange: Equatable {
    let start: UInt64
    let size: UInt64
    /// 1 usable, 2 reserved (e820 and PVH number them alike).
    let type: UInt32
  }

  /// The e820 map: RAM without the legacy window from the MP table to 1 MiB.
  static func memoryMap(of memory: GuestMemory) -> [MemoryRange] {
    [
      MemoryRange(start: 0, size: mpTable, type: 1),
      MemoryRange(start: mpTable, size: kernelStart - mpTable, type: 2),
      MemoryRange(start: kernelStart, size: memory.low.end - min(kernelStart, memory.low.end), type: 1),
      MemoryRange(start: memory.high.start, size: memory.high.size, type: 1),
    ].filter { $0.size > 0 }
  }
}

extension GuestMemory {
  /// A write whose failure means that the boot structure does not fit this machine.
  func put(_ bytes: [UInt8], at address: UInt64) throws(BootError) {
    do throws(GuestMemoryError) { try write(bytes, at: address) } catch {
      throw .outsideRAM(address: address, count: UInt64(bytes.count))
    }
  }
}

extension StateWriter {
  /// Boot structures are little-endian fields in a row, too.
  static func bytes(_ body: (inout StateWriter) -> Void) -> [UInt8] {
    var writer = StateWriter()
    body(&writer)
    return writer.bytes
  }

  mutating func zeros(_ count: Int) {
    for _ in 0..<count { put(UInt8(0)) }
  }
  mutating func ascii(_ text: StaticString) {
    text.withUTF8Buffer { unsafe $0.forEach { put($0) } }
  }
}
