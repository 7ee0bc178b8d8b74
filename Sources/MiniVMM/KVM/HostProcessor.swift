public import StateCodec

/// What a host's processors offer a guest: the words of CPUID that say what it may execute, and the size of its state. A guest
/// can go on at another host only if that has all of it.
public struct HostProcessor: Equatable, Sendable {
  /// Leaf, subleaf and register (EAX to EDX: 0 to 3) of each word. Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E.
  static let words: [(leaf: UInt32, subleaf: UInt32, register: Int)] = [
    (1, 0, 2), (1, 0, 3), (7, 0, 1), (7, 0, 2), (7, 0, 3), (7, 1, 0), (0xd, 0, 0), (0xd, 1, 0),
    (0x8000_0001, 0, 2), (0x8000_0001, 0, 3), (0x8000_0008, 0, 1),
  ]

  /// In the order of ``words``.
  var features: [UInt32]
  /// Bytes of KVM's XSAVE area.
  var stateSize: UInt32

  init(features: [UInt32], stateSize: UInt32) {
    self.features = features
    self.stateSize = stateSize
  }

  public var encoded: [UInt8] {
    var out = StateWriter()
    for word in features { out.put(word) }
    out.put(stateSize)
    return out.bytes
  }

  public init(decoding bytes: [UInt8]) throws(StateError) {
    var reader = StateReader(bytes)
    features = []
    for _ in Self.words { features.append(try reader.get()) }
    stateSize = try reader.get()
    guard reader.remaining == 0 else { throw .invalid("a description of a processor of \(bytes.count) bytes") }
  }

  /// Why a guest from `other` can't go on here; nil when it can.
  public func lacks(of other: HostProcessor) -> String? {
    for (index, word) in Self.words.enumerated() {
      let missing = other.features[index] & ~features[index]
      guard missing != 0 else { continue }
      let register = ["EAX", "EBX", "ECX", "EDX"][word.register]
      return
        "CPUID leaf 0x\(String(word.leaf, radix: 16)), \(register) bits 0x\(String(missing, radix: 16)) are missing"
    }
    guard stateSize == other.stateSize else {
      return "its XSAVE area has \(stateSize) bytes, the other's \(other.stateSize)"
    }
    return nil
  }
}
