/// The kernel command line: words `key=value` or `key`, separated by blanks.
enum CommandLine {
  nonisolated(unsafe) static var text = Bytes(start: emptyBytes, count: 0)

  /// The value of the first word with this key; empty for a word without `=`.
  static func value(_ key: StaticString) -> Bytes? {
    var rest = text
    while let word = rest.next(separator: 0x20) {
      if let value = valueOf(word, key) { return value }
    }
    return nil
  }

  static func valueOf(_ word: Bytes, _ key: StaticString) -> Bytes? {
    guard word.starts(with: key) else { return nil }
    let after = word.from(key.utf8CodeUnitCount)
    if after.isEmpty { return after }
    return after[0] == 0x3d ? after.from(1) : nil
  }

  static func number(_ key: StaticString) -> UInt64? { value(key)?.number() }

  static func number(_ key: StaticString, default fallback: UInt64) -> UInt64 { number(key) ?? fallback }

  static func isOff(_ key: StaticString) -> Bool { value(key)?.equals("off") ?? false }

  /// The number in `name=value` or `name:value` inside a comma-separated option such as `dirty=pages:256,rate:10000`.
  static func part(_ option: Bytes, _ name: StaticString) -> UInt64? { partText(option, name)?.number() }

  static func partText(_ option: Bytes, _ name: StaticString) -> Bytes? {
    var rest = option
    while let part = rest.next(separator: 0x2c) {
      guard part.starts(with: name) else { continue }
      let after = part.from(name.utf8CodeUnitCount)
      if after.count > 1, after[0] == 0x3a || after[0] == 0x3d { return after.from(1) }
    }
    return nil
  }
}

private let emptyText: StaticString = "\0"
var emptyBytes: UnsafePointer<UInt8> { emptyText.utf8Start }
