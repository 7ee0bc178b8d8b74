internal import CLinux
internal import GuestMemory
internal import VirtioLayout

/// virtio-rng (virtio 1.2 §5.4): fills buffers from getrandom(2).
public final class Entropy: VirtioDevice {
  /// Bytes a single request gets at the most; the driver asks again for more.
  static let requestLimit = 4096

  public init() {}

  public var deviceID: UInt32 { DeviceID.entropy }
  public var features: UInt64 { 0 }
  public var queueCount: Int { 1 }
  public var configuration: [UInt8] { [] }

  public func process(queue: Int, _ queues: inout QueueSet) -> Bool {
    var chain = DescriptorChain()
    let visit = Visit()
    for _ in 0..<Int(Virtqueue.maximumSize) {
      guard queues.pop(queue, into: &chain) else {
        guard queues.enableNotifications(queue) else {
          queues.flush(queue)
          return false
        }
        continue
      }
      let wanted = min(Int(chain.writable.count), Self.requestLimit)
      let written = unsafe withUnsafeTemporaryAllocation(byteCount: Self.requestLimit, alignment: 8) { scratch in
        guard unsafe lx_getrandom(scratch.baseAddress, wanted) == 0 else { return 0 }
        return unsafe queues.memory.scatter(
          UnsafeRawBufferPointer(rebasing: scratch[..<wanted]), to: chain.writable)
      }
      if chain.readable.count != 0 { queues.mistakes.add(.request) }
      queues.push(queue, head: chain.head, written: UInt32(written))
      if visit.isOver { break }
    }
    queues.flush(queue)
    return true
  }
}
