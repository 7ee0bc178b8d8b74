import Foundation
import Synchronization

/// Sees how long the disk under a folder stands still: writes a block there again and again, on a thread of its own, and makes it
/// durable. Whoever waits for the disk waits as long, and that is the host's doing.
final class DiskWitness: Sendable {
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
    let thread = Thread { [self] in
      repeat {
        let start = ContinuousClock.now
        state.withLock { $0.since = start }
        _ = pwrite(file, "still here", 10, 0)
        fdatasync(file)
        state.withLock { state in
          state.longest = max(state.longest, .now - start)
          state.since = nil
        }
      } while ended.wait(timeout: .now() + .milliseconds(100)) == .timedOut
      close(file)
    }
    thread.start()
  }

  /// Watches no longer. Does not wait for the disk.
  /// - Returns: seconds of the longest time that it stood still, to this moment if it does.
  func end() -> Double {
    ended.signal()
    return state.withLock { state in
      let now = state.since.map { .now - $0 } ?? .zero
      return max(state.longest, now) / .seconds(1)
    }
  }
}
