internal import CLinux

/// An edge-triggered interrupt: an eventfd that KVM listens to (irqfd). Any thread may raise it; it never blocks.
public final class InterruptLine: Sendable {
  /// The eventfd, owned by this object.
  public let descriptor: CInt

  /// - Throws: the errno of eventfd(2).
  public init() throws(HostError) {
    let fd = lx_eventfd(0)
    guard fd >= 0 else { throw HostError(operation: "eventfd", errno: -fd) }
    descriptor = fd
  }

  deinit { lx_close(descriptor) }

  @inline(__always)
  public func raise() { lx_eventfd_signal(descriptor) }
}

/// A system call of ours that failed.
public struct HostError: Error, Equatable, Sendable, CustomStringConvertible {
  public let operation: String
  public let errno: Int32

  public init(operation: String, errno: Int32) {
    self.operation = operation
    self.errno = errno
  }

  public var description: String { "\(operation): \(unsafe String(cString: lx_strerror(errno)))" }
}
