import StateCodec
import Testing

@Suite("State codec") struct StateCodecTests {
  static let tag = sectionTag("test")

  static func sample() -> [UInt8] {
    var writer = StateWriter()
    writer.section(tag, version: 2) { writer in
      writer.put(0x1122_3344_5566_7788 as UInt64)
      writer.put(true)
      writer.put([1, 2, 3])
      writer.put(-5 as Int32)
    }
    return writer.bytes
  }

  static func decode(_ bytes: [UInt8]) throws(StateError) -> String {
    var reader = StateReader(bytes)
    let text = try reader.section(tag, version: 2) { reader, version throws(StateError) in
      let number = try reader.get(UInt64.self)
      let flag = try reader.get(Bool.self)
      let list = try reader.get([UInt8].self)
      return "\(version) \(number) \(flag) \(list) \(try reader.get(Int32.self))"
    }
    return "\(text) \(reader.remaining)"
  }

  @Test func fields_comeBackInOrder() throws {
    #expect(try Self.decode(Self.sample()) == "2 1234605616436508552 true [1, 2, 3] -5 0")
  }

  @Test func encoding_isLittleEndianAndExplicit() {
    var writer = StateWriter()
    writer.put(0x0102 as UInt16)
    writer.put(0x0304_0506 as UInt32)
    writer.put([9])
    #expect(writer.bytes == [2, 1, 6, 5, 4, 3, 1, 0, 0, 0, 9])
  }

  @Test func section_header_isTagVersionLength() {
    #expect(Array(Self.sample().prefix(10)) == Array("test".utf8) + [2, 0, 20, 0, 0, 0])
  }

  @Test func sections_nest() throws {
    var writer = StateWriter()
    writer.put(UInt8(7))
    writer.section(Self.tag, version: 1) { writer in
      writer.put(UInt8(8))
      writer.section(Self.tag, version: 3) { $0.put([9]) }
    }
    let inner = Array("test".utf8) + [3, 0, 5, 0, 0, 0, 1, 0, 0, 0, 9]
    #expect(writer.bytes == [7] + Array("test".utf8) + [1, 0, 16, 0, 0, 0, 8] + inner)
  }

  @Test(
    arguments: [0, 1, -1, .max, .min] as [Int64])
  func integers_ofEveryWidth_roundTrip(value: Int64) throws {
    var writer = StateWriter()
    writer.put(value)
    writer.put(Int32(truncatingIfNeeded: value))
    writer.put(UInt16(truncatingIfNeeded: value))
    writer.put(Int8(truncatingIfNeeded: value))
    writer.put(UInt8(truncatingIfNeeded: value))
    var reader = StateReader(writer.bytes)
    #expect(try reader.get(Int64.self) == value)
    #expect(try reader.get(Int32.self) == Int32(truncatingIfNeeded: value))
    #expect(try reader.get(UInt16.self) == UInt16(truncatingIfNeeded: value))
    #expect(try reader.get(Int8.self) == Int8(truncatingIfNeeded: value))
    #expect(try reader.get(UInt8.self) == UInt8(truncatingIfNeeded: value))
    #expect(reader.remaining == 0)
  }

  @Test func everyTruncation_isAnError() {
    let bytes = Self.sample()
    for count in 0..<bytes.count {
      #expect(throws: StateError.truncated) { try Self.decode(Array(bytes.prefix(count))) }
    }
  }

  @Test func anotherSection_isNamed() {
    var bytes = Self.sample()
    bytes[0] = UInt8(ascii: "b")
    #expect(throws: StateError.wrongSection(expected: Self.tag, found: sectionTag("best"))) { try Self.decode(bytes) }
    #expect("\(StateError.wrongSection(expected: Self.tag, found: sectionTag("best")))".contains("best"))
  }

  @Test(arguments: [0, 3, 0xffff] as [UInt16])
  func anotherVersion_isRefused(version: UInt16) {
    var bytes = Self.sample()
    bytes[4] = UInt8(truncatingIfNeeded: version)
    bytes[5] = UInt8(version >> 8)
    #expect(throws: StateError.unsupportedVersion(section: Self.tag, found: version)) { try Self.decode(bytes) }
  }

  @Test func olderVersion_isGivenToTheReader() throws {
    var bytes = Self.sample()
    bytes[4] = 1
    #expect(try Self.decode(bytes).hasPrefix("1 "))
  }

  @Test(arguments: [21, 0x7fff_ffff, 0xffff_ffff] as [UInt32])
  func sectionLength_beyondTheBytes_isTruncatedNotAllocated(length: UInt32) {
    var bytes = Self.sample()
    for index in 0..<4 { bytes[6 + index] = UInt8(truncatingIfNeeded: length >> (8 * UInt32(index))) }
    #expect(throws: StateError.truncated) { try Self.decode(bytes) }
  }

  @Test func listLength_beyondItsSection_doesNotReachTheNext() {
    var writer = StateWriter()
    writer.section(Self.tag, version: 1) { $0.put(20 as UInt32) }
    writer.put([UInt8](repeating: 7, count: 100))
    var reader = StateReader(writer.bytes)
    #expect(throws: StateError.truncated) {
      try reader.section(Self.tag, version: 1) { reader, _ throws(StateError) in try reader.get([UInt8].self) }
    }
  }

  @Test func bytesLeftInASection_areAnError() {
    var writer = StateWriter()
    writer.section(Self.tag, version: 1) { $0.put(1 as UInt16) }
    var reader = StateReader(writer.bytes)
    #expect(throws: StateError.trailingBytes(section: Self.tag)) {
      try reader.section(Self.tag, version: 1) { reader, _ throws(StateError) in try reader.get(UInt8.self) }
    }
  }

  @Test(arguments: 2...255 as ClosedRange<UInt8>)
  func boolean_otherThanZeroOrOne_isInvalid(byte: UInt8) {
    var reader = StateReader([byte])
    #expect(throws: StateError.self) { try reader.get(Bool.self) }
  }
}
