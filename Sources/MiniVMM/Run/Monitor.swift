internal import CLinux
internal import Glibc

/// A value behind a mutex, with changes to wait for (pthread). Waiting sleeps in the kernel; nothing polls.
@safe final class Monitor<Value: Sendable>: Sendable {
  private nonisolated(unsafe) let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private nonisolated(unsafe) let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private nonisolated(unsafe) var value: Value

  init(_ value: Value) {
    unsafe self.value = value
    unsafe pthread_mutex_init(mutex, nil)
    unsafe pthread_cond_init(condition, nil)
  }

  deinit {
    unsafe pthread_cond_destroy(condition)
    unsafe pthread_mutex_destroy(mutex)
    unsafe condition.deallocate()
    unsafe mutex.deallocate()
  }

  func withLock<R>(_ body: (inout Value) -> R) -> R {
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    return unsafe body(&value)
  }

  /// As ``withLock(_:)``, and tells those who wait that the value has changed: without the lock, which they want at once.
  func change<R>(_ body: (inout Value) -> R) -> R {
    let result = withLock(body)
    unsafe pthread_cond_broadcast(condition)
    return result
  }

  /// Calls `body` now and after every change until it answers.
  func wait<R>(_ body: (inout Value) -> R?) -> R {
    unsafe pthread_mutex_lock(mutex)
    defer { unsafe pthread_mutex_unlock(mutex) }
    while true {
      if let result = unsafe body(&value) { return result }
      unsafe pthread_cond_wait(condition, mutex)
    }
  }
}
