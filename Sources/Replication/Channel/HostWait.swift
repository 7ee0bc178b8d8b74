internal import Glibc

/// Waits for a descriptor, in milliseconds (-1 for ever): whether it is ready.
enum HostWait {
  @discardableResult
  static func readable(_ descriptor: CInt, timeout: CInt = -1) -> Bool { wait(descriptor, POLLIN, timeout) }

  @discardableResult
  static func writable(_ descriptor: CInt, timeout: CInt = -1) -> Bool { wait(descriptor, POLLOUT, timeout) }

  private static func wait(_ descriptor: CInt, _ events: CInt, _ timeout: CInt) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(events), revents: 0)
    return unsafe poll(&entry, 1, timeout) != 0
  }
}
