/// ACPI Machine Language (ACPI 6.4, chapter 20): the few terms of which our DSDT is made, each as its bytes.
enum AML {
  /// Name (SEGM, object). Names have four characters.
  static func name(_ name: String, _ object: [UInt8]) -> [UInt8] { [0x08] + name.utf8 + object }

  static func integer(_ value: UInt16) -> [UInt8] { [0x0b, UInt8(value & 0xff), UInt8(value >> 8)] }

  static func string(_ text: String) -> [UInt8] { [0x0d] + text.utf8 + [0] }

  static func package(_ elements: [[UInt8]]) -> [UInt8] {
    [0x12] + measured([UInt8(elements.count)] + elements.joined())
  }

  static func device(_ name: String, _ body: [UInt8]) -> [UInt8] { [0x5b, 0x82] + measured(Array(name.utf8) + body) }

  /// Scope (\SEGM).
  static func scope(_ name: String, _ body: [UInt8]) -> [UInt8] { [0x10] + measured(Array("\\\(name)".utf8) + body) }

  /// A buffer of resource descriptors (ACPI 6.4, §6.4) and their end tag.
  static func resources(_ descriptors: [[UInt8]]) -> [UInt8] {
    let bytes = descriptors.joined() + [0x79, 0]
    return [0x11] + measured(integer(UInt16(bytes.count)) + bytes)
  }

  /// Memory32Fixed (ReadWrite, start, size)
  static func memory(_ start: UInt32, _ size: UInt32) -> [UInt8] {
    [0x86, 9, 0, 1] + bytes(start) + bytes(size)
  }

  /// IO (Decode16, start, start, 1, count)
  static func ports(_ start: UInt16, _ count: UInt8) -> [UInt8] {
    [0x47, 1] + bytes(start) + bytes(start) + [1, count]
  }

  /// Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive) {gsi}
  static func interrupt(_ gsi: UInt32) -> [UInt8] { [0x89, 6, 0, 0b0011, 1] + bytes(gsi) }

  private static func bytes<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
  }

  /// PkgLength, which counts itself, and what it is the length of: here always in its form of three bytes.
  private static func measured(_ body: [UInt8]) -> [UInt8] {
    let length = body.count + 3
    return [0x80 | UInt8(length & 0xf), UInt8(length >> 4 & 0xff), UInt8(length >> 12)] + body
  }
}
