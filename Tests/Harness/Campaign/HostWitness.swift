import CHarness
import Foundation
import Synchronization

/// Sees for how long this host makes anybody wait, again and again, on a thread of its own: for the disk under a folder, where a block
/// is written and made durable, and for KVM, where a machine without CPUs loses its memory, as a secondary does at each load and every
/// machine when it ends. KVM waits there for kernel threads (`synchronize_srcu`), which on a loaded host may get no CPU for seconds.
final class HostWitness: Sendable {
  private struct State {
    var longest = Duration.zero
    var since: ContinuousClock.Instant?
  }

  private let state = Mutex(State())
  private let ended = DispatchSemaphore(value: 0)

  init(_ folder: URL) throws {
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    let file = open(folder.appending(path: "witness").path, O_WRONLY | O_CREAT, 0o600)
    guard file >= 0 else { throw HarnessError("no file in \(folder.path): \(String(cString: strerror(errno)))") }
    let machine = harness_make_machine()
    let thread = Thread { [self] in
      repeat {
        watch {
          _ = pwrite(file, "still here", 10, 0)
          fdatasync(file)
        }
        if machine >= 0 { watch { harness_swap_memory(machine) } }
      } while ended.wait(timeout: .now() + .milliseconds(100)) == .timedOut
      close(file)
      if machine >= 0 { close(machine) }
    }
    thread.start()
  }

  private func watch(_ body: () -> Void) {
    let start = ContinuousClock.now
    state.withLock { $0.since = start }
    body()
    state.withLock { state in
      state.longest = max(state.longest, .now - start)
      state.since = nil
    }
  }

  /// Watches no longer. Waits for nothing.
  /// - Returns: seconds of the longest wait, to this moment if it goes on.
  func end() -> Double {
    ended.signal()
    return state.withLock { state in
      let now = state.since.map { .now - $0 } ?? .zero
      return max(state.longest, now) / .seconds(1)
    }
  }
}
