/// The explicit encoding of saved state: little-endian fields in order, grouped in tagged, versioned, length-prefixed
/// sections, so that a reader meets another version as an error and never as a misread field.

/// Why saved state was refused.
public enum StateError: Error, Equatable, Sendable {
  case truncated
  /// A section other than the one expected.
  case wrongSection(expected: UInt32, found: UInt32)
  case unsupportedVersion(section: UInt32, found: UInt16)
  /// Bytes left over at the end of a section.
  case trailingBytes(section: UInt32)
  /// A field whose value no save can have produced.
  case invalid(String)
}

extension StateError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .truncated: "the saved state ends early"
    case .wrongSection(let expected, let found):
      "section \(sectionName(expected)) expected, \(sectionName(found)) found"
    case .unsupportedVersion(let section, let found):
      "section \(sectionName(section)) has version \(found), which this build does not read"
    case .trailingBytes(let section): "section \(sectionName(section)) is longer than its fields"
    case .invalid(let what): "saved state is not valid: \(what)"
    }
  }
}

/// A section tag from four ASCII characters.
public func sectionTag(_ name: StaticString) -> UInt32 {
  name.withUTF8Buffer { characters in
    unsafe characters.prefix(4).reversed().reduce(0) { $0 << 8 | UInt32($1) }
  }
}

private func sectionName(_ tag: UInt32) -> String {
  String(decoding: (0..<4).map { UInt8(truncatingIfNeeded: tag >> ($0 * 8)) }, as: UTF8.self)
}

/// Appends fields to a growing byte array.
public struct StateWriter: Sendable {
  public internal(set) var bytes: [UInt8] = []

  public init() {}
  /// With room for so many bytes.
  public init(capacity: Int) { bytes.reserveCapacity(capacity) }

  // Specialised by its callers: it is called for every field of every message.
  @inlinable
  public mutating func put<T: FixedWidthInteger>(_ value: T) {
    unsafe withUnsafeBytes(of: value.littleEndian) { unsafe append($0) }
  }

  @usableFromInline
  mutating func append(_ value: UnsafeRawBufferPointer) { unsafe bytes.append(contentsOf: value) }

  public mutating func put(_ value: Bool) { put(UInt8(value ? 1 : 0)) }

  /// A length (4 bytes) and that many bytes.
  public mutating func put(_ value: [UInt8]) {
    put(UInt32(value.count))
    bytes.append(contentsOf: value)
  }

  /// A section: tag, version, length, then what `body` writes. If that throws, the writer is of no use any more.
  public mutating func section<E: Error>(
    _ tag: UInt32, version: UInt16, _ body: (inout StateWriter) throws(E) -> Void
  ) throws(E) {
    put(tag)
    put(version)
    put(UInt32(0))
    let start = bytes.count
    try body(&self)
    let count = UInt32(bytes.count - start)
    for index in 0..<4 { bytes[start - 4 + index] = UInt8(truncatingIfNeeded: count >> UInt32(8 * index)) }
  }
}

/// Reads fields in the order they were written; every length is checked against what is there before use.
public struct StateReader: Sendable {
  @usableFromInline let bytes: ArraySlice<UInt8>
  @usableFromInline var position: Int

  public init(_ bytes: [UInt8]) {
    self.init(slice: bytes[...])
  }

  public init(slice: ArraySlice<UInt8>) {
    bytes = slice
    position = slice.startIndex
  }

  public var remaining: Int { bytes.endIndex - position }

  @inlinable
  public mutating func get<T: FixedWidthInteger>(_ type: T.Type = T.self) throws(StateError) -> T {
    let size = T.bitWidth / 8
    guard remaining >= size else { throw .truncated }
    var value: T = 0
    for index in (0..<size).reversed() {
      value = (size == 1 ? 0 : value &<< 8) | T(truncatingIfNeeded: bytes[position + index])
    }
    position += size
    return value
  }

  public mutating func get(_: Bool.Type = Bool.self) throws(StateError) -> Bool {
    switch try get(UInt8.self) {
    case 0: return false
    case 1: return true
    case let other: throw .invalid("\(other) for a yes or no")
    }
  }

  public mutating func get(_: [UInt8].Type = [UInt8].self) throws(StateError) -> [UInt8] {
    Array(try slice())
  }

  /// Reads a section that must have this tag and a version not above `version`; `body` must consume it whole.
  public mutating func section<R, E: Error>(
    _ tag: UInt32, version: UInt16, _ body: (inout StateReader, _ version: UInt16) throws(E) -> R,
    failure: (StateError) -> E
  ) throws(E) -> R {
    var inner: StateReader
    let found: UInt16
    do throws(StateError) {
      let foundTag = try get(UInt32.self)
      guard foundTag == tag else { throw .wrongSection(expected: tag, found: foundTag) }
      found = try get(UInt16.self)
      guard found != 0, found <= version else { throw .unsupportedVersion(section: tag, found: found) }
      inner = StateReader(slice: try slice())
    } catch { throw failure(error) }
    let result = try body(&inner, found)
    guard inner.remaining == 0 else { throw failure(.trailingBytes(section: tag)) }
    return result
  }

  public mutating func section<R>(
    _ tag: UInt32, version: UInt16, _ body: (inout StateReader, _ version: UInt16) throws(StateError) -> R
  ) throws(StateError) -> R {
    try section(tag, version: version, body) { $0 }
  }

  private mutating func slice() throws(StateError) -> ArraySlice<UInt8> {
    let count = Int(try get(UInt32.self))
    guard count <= remaining else { throw .truncated }
    defer { position += count }
    return bytes[position..<position + count]
  }
}
