import LabC

/// hvm_start_info, what the PVH loader hands over (byte offsets).
struct StartInfo {
  let address: UInt64

  private func u32(_ offset: UInt64) -> UInt32 { physical(address + offset).loadUnaligned(as: UInt32.self) }
  private func u64(_ offset: UInt64) -> UInt64 { physical(address + offset).loadUnaligned(as: UInt64.self) }

  var isValid: Bool { u32(0) == 0x336e_c578 }
  var commandLine: Bytes {
    let address = u64(24)
    guard address != 0 else { return Bytes(start: emptyBytes, count: 0) }
    let start = physical(address).assumingMemoryBound(to: UInt8.self)
    var count = 0
    while count < 4096, start[count] != 0 { count += 1 }
    return Bytes(start: start, count: count)
  }

  /// End of the RAM region that holds `address`, at most 3 GiB.
  func endOfRAM(around address: UInt64) -> UInt64 {
    let table = u64(40)
    for i in 0..<UInt64(u32(48)) {
      let entry = physical(table + i * 24)
      let start = entry.loadUnaligned(as: UInt64.self)
      let size = entry.loadUnaligned(fromByteOffset: 8, as: UInt64.self)
      let usable = entry.loadUnaligned(fromByteOffset: 16, as: UInt32.self) == 1
      if usable, start <= address, address - start < size { return min(start + size, 0xc000_0000) }
    }
    return address
  }
}

/// Memory is mapped one to one.
@inline(__always)
func physical(_ address: UInt64) -> UnsafeMutableRawPointer {
  UnsafeMutableRawPointer(bitPattern: UInt(address)).unsafelyUnwrapped
}

@inline(__always)
func address(_ pointer: UnsafeRawPointer) -> UInt64 { UInt64(UInt(bitPattern: pointer)) }

/// Pointers to what is set up at run time begin as this: into page 0, which is not mapped. Constants, unlike nil they need
/// no test at each use.
extension UnsafeMutablePointer {
  @_transparent static var unset: Self { Self(bitPattern: 16)! }
  var isUnset: Bool { self == .unset }
}

extension UnsafeMutableRawPointer {
  @_transparent static var unset: Self { Self(bitPattern: 16)! }
  var isUnset: Bool { self == .unset }
}

/// RAM behind the image, given out once and never taken back: rings, buffers, stacks, the store.
enum Arena {
  nonisolated(unsafe) private(set) static var next: UInt64 = 0
  nonisolated(unsafe) private(set) static var end: UInt64 = 0

  static var free: UInt64 { end > next ? end - next : 0 }

  static func setUp(_ info: StartInfo) {
    next = image_end_address()
    end = info.endOfRAM(around: next)
    // The loader may have put its tables behind the image.
    let loaderData: InlineArray<2, UInt64> = [info.address, address(CommandLine.text.start)]
    for i in 0..<2 where loaderData[i] >= next && loaderData[i] < end {
      next = loaderData[i] + 0x3000
    }
  }

  static func take(_ size: Int, alignment: UInt64 = 64) -> UnsafeMutableRawPointer {
    let start = (next + alignment - 1) & ~(alignment - 1)
    guard size >= 0, start <= end, UInt64(size) <= end - start else {
      Console.line("lab: not enough memory; give the VM more")
      Machine.crashed()
    }
    next = start + UInt64(size)
    return physical(start)
  }

  static func takeZeroed(_ size: Int, alignment: UInt64 = 64) -> UnsafeMutableRawPointer {
    let pointer = take(size, alignment: alignment)
    _ = memset(pointer, 0, size)
    return pointer
  }

  /// Room for `count` values of a type that is valid when all its bytes are zero.
  static func takeZeroed<T>(_ type: T.Type, count: Int) -> UnsafeMutablePointer<T> {
    takeZeroed(MemoryLayout<T>.stride * count).bindMemory(to: T.self, capacity: count)
  }
}
