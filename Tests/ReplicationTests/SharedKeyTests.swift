import Testing

@testable import Replication

/// The published vectors: another implementation of the protocol must get the same codes.
@Suite("Shared key") struct SharedKeyTests {
  private func bytes(_ hex: String) -> [UInt8] {
    let digits = Array(hex.utf8).map { $0 < 0x3a ? $0 - 0x30 : $0 - 0x57 }
    return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
  }

  /// RFC 4231, test cases 1 and 6 (a key longer than a block).
  @Test func code_isHMACOfSHA256() {
    let first = SharedKey([UInt8](repeating: 0x0b, count: 20)).code(Array("Hi ".utf8), Array("There".utf8))
    #expect(first == bytes("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"))
    let text = "Test Using Larger Than Block-Size Key - Hash Key First"
    let long = SharedKey([UInt8](repeating: 0xaa, count: 131)).code(Array(text.utf8), [])
    #expect(long == bytes("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"))
  }

  /// RFC 5869, test case 1: the first 32 bytes; seen through a code made with the derived key.
  @Test func derived_isHKDF() {
    let key = SharedKey([UInt8](repeating: 0x0b, count: 22))
    let derived = key.derived(salt: bytes("000102030405060708090a0b0c"), info: bytes("f0f1f2f3f4f5f6f7f8f9"))
    let expected = SharedKey(bytes("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"))
    #expect(derived.code([1], [2]) == expected.code([1], [2]))
  }

  @Test func recordCode_isOfKeyNumberAndBytes() {
    func code(_ key: UInt8, _ number: UInt64, _ bytes: [UInt8]) -> [UInt8] {
      var code = RecordCode(SharedKey([UInt8](repeating: key, count: 32)))
      _ = unsafe bytes.withUnsafeBytes { unsafe code.code(number: 9, $0) }
      return unsafe bytes.withUnsafeBytes { unsafe code.code(number: number, $0) }
    }
    let one = code(1, 7, [1, 2, 3])
    #expect(one.count == RecordCode.size)
    #expect(one == code(1, 7, [1, 2, 3]))
    #expect(one != code(2, 7, [1, 2, 3]))
    #expect(one != code(1, 8, [1, 2, 3]))
    #expect(one != code(1, 7, [1, 2, 2]))
    #expect(one != code(1, 7, [1, 2, 3, 0]))
  }

  @Test func equal_comparesEverything() {
    #expect(SharedKey.equal([1, 2, 3][...], [1, 2, 3][...]))
    #expect(!SharedKey.equal([1, 2, 3][...], [1, 2, 4][...]))
    #expect(!SharedKey.equal([1, 2, 3][...], [1, 2][...]))
    #expect(SharedKey.equal([], []))
  }
}
