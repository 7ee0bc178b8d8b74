internal import CLinux
internal import Devices
internal import GuestMemory
internal import MiniVMM
internal import Replication
internal import Synchronization

/// A checkpoint that a secondary holds whole.
struct WholeCheckpoint: Sendable {
  var epoch: UInt64
  /// How many frames of input the primary's guest had been given.
  var given: UInt64
  var mappings: [UInt8]
  var addresses: [UInt8]
  /// What the primary's clients may not have seen of it.
  var held: [[UInt8]]
  /// How long its output waited, in microseconds.
  var wait: UInt32
  /// Whether the primary looks for output that may leave early from here on.
  var search: EarlySearch
  var state: [UInt8]
  var stage: PageStage
}

/// Whole checkpoints on their way from the thread that receives to the one that loads, so that input is acknowledged and the
/// next checkpoint received while one is loaded. What waits is loaded at one go.
final class CheckpointQueue: Sendable {
  private struct State {
    var waiting: [WholeCheckpoint] = []
    var loading: [WholeCheckpoint] = []
    var spare: [PageStage] = []
    var hasEnded = false
  }

  /// Checkpoints that may wait: a primary that is faster than that has to.
  private static let limit = 8
  private let state = Mutex(State())
  /// Eventfds: there is work, there is room.
  private let work: CInt
  private let room: CInt

  init() throws(HostError) {
    work = lx_eventfd(0)
    room = lx_eventfd(0)
    guard work >= 0, room >= 0 else { throw HostError(operation: "eventfd", errno: -min(work, room)) }
  }

  deinit {
    lx_close(work)
    lx_close(room)
  }

  /// Whether nothing waits to be loaded.
  var isIdle: Bool { state.withLock { $0.waiting.isEmpty && !$0.hasEnded } }

  /// An empty stage for the next checkpoint's pages.
  func stage() -> PageStage { state.withLock { $0.spare.popLast() } ?? PageStage() }

  /// Receiving thread: what a page is by the checkpoints that are whole. A page that none of those in the queue has is in
  /// `memory`, where the loading thread leaves it alone.
  func copy(_ page: Int, from memory: GuestMemory, to place: UnsafeMutableRawBufferPointer) {
    state.withLock { state in
      for checkpoint in (state.loading + state.waiting).reversed() {
        if let contents = unsafe checkpoint.stage.find(page) { return unsafe place.copyMemory(from: contents) }
      }
      if let contents = unsafe memory.checkpointPage(page) {
        unsafe place.copyMemory(from: UnsafeRawBufferPointer(contents))
      }
    }
  }

  /// Receiving thread. Waits while too many wait; ends with the loading thread's.
  func put(_ checkpoint: WholeCheckpoint) {
    while state.withLock({ $0.waiting.count >= Self.limit && !$0.hasEnded }) {
      HostThread.waitReadable(room, timeoutMilliseconds: 100)
      _ = lx_eventfd_take(room)
    }
    state.withLock { $0.waiting.append(checkpoint) }
    lx_eventfd_signal(work)
  }

  /// Loading thread: all that waits, oldest first; waits for some. Empty when there is no more.
  func take() -> [WholeCheckpoint] {
    while true {
      let (waiting, hasEnded) = state.withLock { state in
        state.loading = state.waiting
        state.waiting = []
        return (state.loading, state.hasEnded)
      }
      if !waiting.isEmpty { lx_eventfd_signal(room) }
      if !waiting.isEmpty || hasEnded { return waiting }
      HostThread.waitReadable(work)
      _ = lx_eventfd_take(work)
    }
  }

  /// Loading thread: the stages of what it has loaded, to be used again.
  func giveBack(_ checkpoints: [WholeCheckpoint]) {
    state.withLock { state in
      state.loading = []
      for checkpoint in checkpoints { checkpoint.stage.removeAll() }
      // One that is filled and one that is loaded.
      state.spare.append(contentsOf: checkpoints.map(\.stage).prefix(2 - min(2, state.spare.count)))
    }
  }

  /// No more checkpoints come: ``take()`` empties the queue and ends.
  func end() {
    state.withLock { $0.hasEnded = true }
    lx_eventfd_signal(work)
    lx_eventfd_signal(room)
  }
}
