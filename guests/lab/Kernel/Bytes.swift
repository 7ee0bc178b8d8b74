import LabC

/// A run of bytes somewhere in memory: command line, request, key. Does not own them.
struct Bytes {
  var start: UnsafePointer<UInt8>
  var count: Int

  subscript(index: Int) -> UInt8 { start[index] }

  var isEmpty: Bool { count == 0 }

  func from(_ offset: Int) -> Bytes { Bytes(start: start + offset, count: count - offset) }

  func equals(_ text: StaticString) -> Bool {
    text.utf8CodeUnitCount == count && memcmp(start, text.utf8Start, count) == 0
  }

  /// ASCII letters compare without case, as Redis commands do.
  func equalsIgnoringCase(_ text: StaticString) -> Bool {
    guard text.utf8CodeUnitCount == count else { return false }
    for i in 0..<count where (start[i] | 0x20) != (text.utf8Start[i] | 0x20) { return false }
    return true
  }

  func starts(with text: StaticString) -> Bool {
    count >= text.utf8CodeUnitCount && memcmp(start, text.utf8Start, text.utf8CodeUnitCount) == 0
  }

  func firstIndex(of byte: UInt8) -> Int? {
    for i in 0..<count where start[i] == byte { return i }
    return nil
  }

  /// Removes and returns what is before the next `separator` (leading ones are skipped); nil at the end.
  mutating func next(separator: UInt8) -> Bytes? {
    while count > 0, start[0] == separator { self = from(1) }
    guard count > 0 else { return nil }
    let end = firstIndex(of: separator) ?? count
    let piece = Bytes(start: start, count: end)
    self = from(min(end + 1, count))
    return piece
  }

  /// The whole run as a decimal number, nil if it is none or over 64 bits.
  func decimal() -> UInt64? {
    guard count > 0 else { return nil }
    var value: UInt64 = 0
    for i in 0..<count {
      let digit = start[i] &- 0x30
      guard digit < 10 else { return nil }
      let (times, over) = value.multipliedReportingOverflow(by: 10)
      let (sum, overSum) = times.addingReportingOverflow(UInt64(digit))
      guard !over, !overSum else { return nil }
      value = sum
    }
    return value
  }

  func signedDecimal() -> Int64? {
    if count > 1, start[0] == 0x2d {
      guard let magnitude = from(1).decimal(), magnitude <= UInt64(Int64.max) else { return nil }
      return -Int64(magnitude)
    }
    guard let magnitude = decimal(), magnitude <= UInt64(Int64.max) else { return nil }
    return Int64(magnitude)
  }

  func hexadecimal() -> UInt64? {
    var rest = self
    if rest.starts(with: "0x") { rest = rest.from(2) }
    guard rest.count > 0, rest.count <= 16 else { return nil }
    var value: UInt64 = 0
    for i in 0..<rest.count {
      let c = rest[i] | 0x20
      let digit: UInt8
      switch c {
      case 0x30...0x39: digit = c - 0x30
      case 0x61...0x66: digit = c - 0x61 + 10
      default: return nil
      }
      value = value << 4 | UInt64(digit)
    }
    return value
  }

  /// Decimal, or hexadecimal after 0x.
  func number() -> UInt64? { starts(with: "0x") ? hexadecimal() : decimal() }
}

/// Text put together in a fixed buffer; what does not fit is cut off and `overflowed` says so.
struct ByteWriter {
  let base: UnsafeMutablePointer<UInt8>
  let capacity: Int
  var count = 0
  var overflowed = false

  init(_ base: UnsafeMutablePointer<UInt8>, capacity: Int) {
    self.base = base
    self.capacity = capacity
  }

  var room: Int { capacity - count }

  mutating func byte(_ value: UInt8) {
    guard count < capacity else {
      overflowed = true
      return
    }
    base[count] = value
    count += 1
  }

  mutating func raw(_ pointer: UnsafeRawPointer, _ length: Int) {
    let n = min(length, room)
    _ = memcpy(base + count, pointer, n)
    count += n
    if n < length { overflowed = true }
  }

  mutating func text(_ text: StaticString) { raw(text.utf8Start, text.utf8CodeUnitCount) }

  mutating func bytes(_ bytes: Bytes) { raw(bytes.start, bytes.count) }

  mutating func decimal(_ value: UInt64) {
    var digits: InlineArray<20, UInt8> = .init(repeating: 0)
    var rest = value
    var first = 20
    repeat {
      first -= 1
      digits[first] = UInt8(truncatingIfNeeded: 0x30 + rest % 10)
      rest /= 10
    } while rest != 0
    while first < 20 {
      byte(digits[first])
      first += 1
    }
  }

  mutating func signed(_ value: Int64) {
    if value < 0 { byte(0x2d) }
    decimal(value.magnitude)
  }

  /// `value` / 10^`places`, with that many digits after the point.
  mutating func fixed(_ value: UInt64, places: Int) {
    var scale: UInt64 = 1
    for _ in 0..<places { scale *= 10 }
    decimal(value / scale)
    byte(0x2e)
    var rest = value % scale
    for _ in 0..<places {
      scale /= 10
      byte(UInt8(truncatingIfNeeded: 0x30 + rest / scale))
      rest %= scale
    }
  }

  mutating func hex(_ value: UInt64) {
    text("0x")
    var shift: UInt64 = 60
    while shift > 0, value >> shift == 0 { shift -= 4 }
    while true {
      let digit = UInt8(truncatingIfNeeded: value >> shift & 15)
      byte(digit < 10 ? 0x30 + digit : 0x57 + digit)
      if shift == 0 { return }
      shift -= 4
    }
  }
}
