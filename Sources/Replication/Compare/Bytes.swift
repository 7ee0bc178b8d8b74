// Big-endian loads and stores of a frame. The callers have checked the bounds, the span checks them again.
extension Span where Element == UInt8 {
  @inline(__always) func load16(_ offset: Int) -> UInt16 { UInt16(self[offset]) << 8 | UInt16(self[offset + 1]) }

  @inline(__always) func load32(_ offset: Int) -> UInt32 {
    UInt32(load16(offset)) << 16 | UInt32(load16(offset + 2))
  }

  @inline(__always) func load64(_ offset: Int) -> UInt64 {
    UInt64(load32(offset)) << 32 | UInt64(load32(offset + 4))
  }
}

extension MutableSpan where Element == UInt8 {
  @inline(__always) func load16(_ offset: Int) -> UInt16 { UInt16(self[offset]) << 8 | UInt16(self[offset + 1]) }

  @inline(__always) func load32(_ offset: Int) -> UInt32 {
    UInt32(load16(offset)) << 16 | UInt32(load16(offset + 2))
  }

  @inline(__always) mutating func store16(_ value: UInt16, at offset: Int) {
    self[offset] = UInt8(value >> 8)
    self[offset + 1] = UInt8(truncatingIfNeeded: value)
  }

  @inline(__always) mutating func store32(_ value: UInt32, at offset: Int) {
    store16(UInt16(value >> 16), at: offset)
    store16(UInt16(truncatingIfNeeded: value), at: offset + 2)
  }
}
