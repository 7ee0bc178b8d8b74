internal import CLinux
internal import Glibc
internal import Synchronization

/// Where console output goes. Called on the device thread.
public protocol ConsoleSink: AnyObject, Sendable {
  /// A descriptor that tells when more can be written; nil when writing never waits.
  var waitDescriptor: CInt? { get }
  /// Writes without waiting; returns how many bytes were taken. Bytes that can never be written count as taken.
  func write(_ bytes: ArraySlice<UInt8>) -> Int
}

/// Console output to a descriptor such as standard output.
public final class DescriptorSink: ConsoleSink {
  private let descriptor: CInt

  /// Opens a terminal or pipe once more, so that making it non-blocking does not change the shell's. A regular file
  /// never waits, and is shared with whoever else writes to it, its position included.
  public init(_ descriptor: CInt) {
    let isFile = lx_file_size(descriptor) >= 0
    let again = isFile ? -1 : unsafe lx_open("/proc/self/fd/\(descriptor)", O_WRONLY | O_NONBLOCK | O_NOCTTY, 0)
    // Sockets can't be opened again; a write to one may then wait, on the device thread.
    self.descriptor = again >= 0 ? again : descriptor
  }

  public var waitDescriptor: CInt? { descriptor }

  public func write(_ bytes: ArraySlice<UInt8>) -> Int {
    var done = 0
    while done < bytes.count {
      let result = unsafe bytes.dropFirst(done).withUnsafeBytes {
        unsafe lx_write(descriptor, $0.baseAddress, $0.count)
      }
      if result > 0 {
        done += result
      } else if result == -Int(EAGAIN) {
        break
      } else if result != -Int(EINTR) {
        // The reader has gone: the guest's console goes on into nothing.
        return bytes.count
      }
    }
    return done
  }
}

/// Console output kept in memory, the last `limit` bytes of it: for tests and embedders.
public final class MemorySink: ConsoleSink {
  private let kept = Mutex<[UInt8]>([])
  private let limit: Int

  public init(limit: Int = 1 << 20) { self.limit = limit }

  public var waitDescriptor: CInt? { nil }

  public func write(_ bytes: ArraySlice<UInt8>) -> Int {
    kept.withLock { kept in
      kept.append(contentsOf: bytes)
      if kept.count > limit { kept.removeFirst(kept.count - limit) }
    }
    return bytes.count
  }

  public var text: String { kept.withLock { String(decoding: $0, as: UTF8.self) } }
}
