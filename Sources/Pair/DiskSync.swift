internal import CLinux
internal import Devices
internal import Synchronization

/// Makes the disk files of a secondary durable behind its loads, on a thread of its own, so that a takeover has little left to wait
/// for and no load waits for a disk.
final class DiskSync: Sendable {
  private let disks: [FollowerDisk]
  /// An eventfd: something was loaded, or it is to end.
  private let wake: CInt
  private let isEnding = Atomic(false)
  private let thread = Mutex<HostThread?>(nil)

  init(_ disks: [FollowerDisk]) throws(HostError) {
    self.disks = disks
    wake = lx_eventfd(0)
    guard wake >= 0 else { throw HostError(operation: "eventfd", errno: -wake) }
    guard !disks.isEmpty else { return }
    let thread = try HostThread.start(name: "pair-sync") { [self] in run() }
    self.thread.withLock { $0 = thread }
  }

  deinit { lx_close(wake) }

  /// A checkpoint is loaded.
  func loaded() { if disks.contains(where: \.isUnsynced) { lx_eventfd_signal(wake) } }

  /// Waits for what the thread is at: whether that could be done is known then.
  func end() {
    isEnding.store(true, ordering: .releasing)
    lx_eventfd_signal(wake)
    thread.withLock { $0.take() }?.join()
  }

  private func run() {
    while true {
      HostThread.waitReadable(wake)
      _ = lx_eventfd_take(wake)
      if isEnding.load(ordering: .acquiring) { return }
      for disk in disks { disk.sync() }
    }
  }
}
