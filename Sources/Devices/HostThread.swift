internal import CLinux
internal import Glibc

/// Host threads: raw pthreads, because a task that blocks in a system call would starve the cooperative pool.
public struct HostThread: Sendable {
  private let handle: UInt
  private final class Body: Sendable {
    let name: String
    let run: @Sendable () -> Void

    init(name: String, run: @escaping @Sendable () -> Void) {
      self.name = name
      self.run = run
    }
  }

  /// Starts a joinable thread named `name` (15 bytes at most).
  public static func start(name: String, _ run: @escaping @Sendable () -> Void) throws(HostError) -> HostThread {
    let body = unsafe Unmanaged.passRetained(Body(name: name, run: run))
    var thread = pthread_t()
    let result = unsafe lx_thread_start(
      &thread,
      { @Sendable context in
        guard let context = unsafe context else { return nil }
        let body = unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue()
        unsafe lx_set_thread_name(body.name)
        let stack = unsafe lx_signal_stack()
        body.run()
        unsafe lx_signal_stack_end(stack)
        return nil
      }, body.toOpaque())
    guard result == 0 else {
      unsafe body.release()
      throw HostError(operation: "pthread_create", errno: -result)
    }
    return HostThread(handle: UInt(thread))
  }

  /// Waits for the thread's end.
  public func join() { lx_thread_join(pthread_t(handle)) }

  /// Interrupts the system call the thread may be in.
  public func signal(_ number: Int32) { lx_thread_signal(pthread_t(handle), number) }

  /// Lets the thread run on the first `count` of the CPUs that the process may use; 0 for all of them.
  public func limitHostCPUs(_ count: Int) { lx_thread_limit_cpus(pthread_t(handle), CInt(count)) }

  /// Waits until `descriptor` is readable, or a signal comes.
  public static func waitReadable(_ descriptor: CInt, timeoutMilliseconds: Int32 = -1) {
    wait(descriptor, POLLIN, timeoutMilliseconds)
  }

  /// Waits until `descriptor` is writable, or a signal comes.
  public static func waitWritable(_ descriptor: CInt, timeoutMilliseconds: Int32 = -1) {
    wait(descriptor, POLLOUT, timeoutMilliseconds)
  }

  private static func wait(_ descriptor: CInt, _ events: Int32, _ timeoutMilliseconds: Int32) {
    var entry = pollfd(fd: descriptor, events: Int16(events), revents: 0)
    _ = unsafe poll(&entry, 1, timeoutMilliseconds)
  }
}
