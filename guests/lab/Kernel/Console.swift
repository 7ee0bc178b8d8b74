import LabC

/// Lines on COM1. Composed at CPL3, written by one ring-0 call a line.
enum Console {
  nonisolated(unsafe) private static var fifoEnabled = false

  static func write(_ pointer: UnsafePointer<UInt8>, _ count: Int) {
    if !fifoEnabled {
      Ring0.out8(0x3fa, 1)
      fifoEnabled = true
    }
    Ring0.call(.console, UInt64(UInt(bitPattern: pointer)), UInt64(count))
  }

  /// Prints one line; `compose` adds to it, the newline is added here.
  @inline(never)
  static func line(_ compose: (inout ByteWriter) -> Void) {
    var storage: InlineArray<512, UInt8> = .init(repeating: 0)
    withUnsafeMutablePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: UInt8.self, capacity: 512) { bytes in
        var writer = ByteWriter(bytes, capacity: 511)
        compose(&writer)
        bytes[writer.count] = 0x0a
        write(bytes, writer.count + 1)
      }
    }
  }

  static func line(_ text: StaticString) { line { $0.text(text) } }
}
