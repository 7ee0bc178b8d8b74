internal import CLinux
internal import Devices
internal import Glibc
internal import Synchronization

/// A joinable pthread of the machine: named, with a body, kicked by signal.
final class MachineThread: Sendable {
  private let handle: pthread_t
  private let joined = Atomic<Bool>(false)

  private final class Body: Sendable {
    let name: String
    let run: @Sendable () -> Void
    init(name: String, run: @escaping @Sendable () -> Void) {
      self.name = name
      self.run = run
    }
  }

  /// - Parameter name: at most 15 bytes.
  init(name: String, _ run: @escaping @Sendable () -> Void) throws(HostError) {
    let body = unsafe Unmanaged.passRetained(Body(name: name, run: run))
    var thread = pthread_t()
    let result = unsafe lx_thread_start(
      &thread,
      { @Sendable context in
        guard let context = unsafe context else { return nil }
        let body = unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue()
        unsafe lx_set_thread_name(body.name)
        body.run()
        return nil
      }, body.toOpaque())
    guard result == 0 else {
      unsafe body.release()
      throw HostError(operation: "start of thread \(name)", errno: -result)
    }
    handle = thread
  }

  /// Interrupts a blocking call of the thread. Harmless when it has ended.
  func kick() {
    // After the join the handle means nothing any more.
    if !joined.load(ordering: .acquiring) { lx_thread_signal(handle, lx_kick_signal()) }
  }

  /// Waits for its end; once.
  func join() {
    if !joined.exchange(true, ordering: .acquiringAndReleasing) { _ = lx_thread_join(handle) }
  }
}
