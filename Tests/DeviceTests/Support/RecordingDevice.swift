import Devices
import GuestMemory
import Synchronization
import VirtioLayout

/// A device that takes every chain it is given, writes 0xA5 into all of its writable bytes and keeps a note of it: shows
/// what the queue lets through.
final class RecordingDevice: VirtioDevice {
  struct Seen: Equatable, Sendable {
    var queue: Int
    var head: UInt16
    var readable: [UInt64]
    var writable: [UInt64]
    var readableBytes: UInt64
    var writableBytes: UInt64
  }

  let queueCount: Int
  let configuration: [UInt8]
  let features: UInt64
  private let log = Mutex<[Seen]>([])
  private let holding = Mutex<Bool>(false)
  private let hook = Mutex<(@Sendable () -> Void)?>(nil)

  init(queueCount: Int = 1, configuration: [UInt8] = [1, 2, 3, 4, 5, 6], features: UInt64 = 1 << 3) {
    self.queueCount = queueCount
    self.configuration = configuration
    self.features = features
  }

  var deviceID: UInt32 { 42 }
  var seen: [Seen] { log.withLock { $0 } }
  /// While set, chains are popped and kept.
  var holds: Bool {
    get { holding.withLock { $0 } }
    set { holding.withLock { $0 = newValue } }
  }

  /// Runs between the pop of a chain and its use: another vCPU that changes what was popped.
  func onPop(_ body: @escaping @Sendable () -> Void) { hook.withLock { $0 = body } }

  func process(queue: Int, _ queues: inout QueueSet) -> Bool {
    var chain = DescriptorChain()
    queues.disableNotifications(queue)
    for _ in 0..<64 {
      guard queues.pop(queue, into: &chain) else {
        queues.flush(queue)
        guard queues.enableNotifications(queue) else { return false }
        continue
      }
      hook.withLock { $0 }?()
      let entry = Seen(
        queue: queue, head: chain.head, readable: chain.readable.pieces.map(\.address),
        writable: chain.writable.pieces.map(\.address), readableBytes: chain.readable.count,
        writableBytes: chain.writable.count)
      log.withLock { if $0.count < 4096 { $0.append(entry) } }
      if holds { continue }
      let fill = [UInt8](repeating: 0xa5, count: Int(min(chain.writable.count, 1 << 20)))
      let written = unsafe fill.withUnsafeBytes { unsafe queues.memory.scatter($0, to: chain.writable) }
      queues.push(queue, head: chain.head, written: UInt32(written))
    }
    queues.flush(queue)
    return true
  }
}
