internal import CNettle

/// The codes of one direction's records: UMAC-128 (RFC 4418), whose nonce is the record's number. Several times as fast as HMAC,
/// which counts where every byte of a guest's output goes through it; a number must never have two records.
@safe struct RecordCode: ~Copyable, @unchecked Sendable {
  static let size = 16
  /// The key's tables, 1.3 KiB, used and changed by each call; nobody else's.
  private let context: UnsafeMutablePointer<umac128_ctx>

  /// - Parameter key: 16 bytes or more, of which the first 16 count.
  init(_ key: SharedKey) {
    unsafe context = .allocate(capacity: 1)
    unsafe key.withBytes { unsafe mv_umac128_key(context, $0) }
  }

  deinit { unsafe context.deallocate() }

  /// The code of a record, which may lie in two pieces: 16 bytes.
  mutating func code(
    number: UInt64, _ record: UnsafeRawBufferPointer,
    _ rest: UnsafeRawBufferPointer = unsafe UnsafeRawBufferPointer(start: nil, count: 0)
  ) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: Self.size) { code, count in
      unsafe mv_umac128(
        context, number, record.baseAddress, record.count, rest.baseAddress, rest.count, code.baseAddress)
      count = Self.size
    }
  }
}
