internal import CNettle

/// A secret that both sides of a pair know, and what is made with it: HMAC-SHA-256 (RFC 2104) and keys derived by HKDF
/// (RFC 5869).
public struct SharedKey: Sendable {
  public static let codeSize = 32
  private let bytes: [UInt8]

  public init(_ bytes: [UInt8]) { self.bytes = bytes }

  /// The code of two pieces in a row, 32 bytes.
  public func code(_ first: [UInt8], _ second: [UInt8]) -> [UInt8] {
    var code = [UInt8](repeating: 0, count: Self.codeSize)
    unsafe mv_hmac_sha256(bytes, bytes.count, first, first.count, second, second.count, &code)
    return code
  }

  func code(_ first: [UInt8], _ second: UnsafeRawBufferPointer) -> [UInt8] {
    var code = [UInt8](repeating: 0, count: Self.codeSize)
    unsafe mv_hmac_sha256(bytes, bytes.count, first, first.count, second.baseAddress, second.count, &code)
    return code
  }

  func withBytes(_ body: (UnsafePointer<UInt8>) -> Void) {
    unsafe bytes.withUnsafeBufferPointer { unsafe body($0.baseAddress!) }
  }

  /// A key of 32 bytes for one purpose.
  func derived(salt: [UInt8], info: [UInt8]) -> SharedKey {
    let extracted = SharedKey(SharedKey(salt).code(bytes, []))
    return SharedKey(extracted.code(info, [1]))
  }

  /// Compares codes in a time that tells nothing.
  static func equal(_ a: ArraySlice<UInt8>, _ b: ArraySlice<UInt8>) -> Bool {
    guard a.count == b.count else { return false }
    return unsafe a.withUnsafeBufferPointer { a in
      unsafe b.withUnsafeBufferPointer { b in
        guard let first = a.baseAddress, let second = b.baseAddress else { return true }
        return unsafe mv_equal(first, second, a.count) != 0
      }
    }
  }
}
