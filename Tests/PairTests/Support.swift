import CLinux
import Devices
import Glibc
import GuestMemory
import Replication
import Synchronization
import Testing

@testable import Pair

/// A frame of IPv4 and TCP between 10.0.0.2:80, the guest, and 10.0.0.9:40000, written out byte by byte, with a virtio-net header.
struct Segment {
  var isIncoming = false
  var port: UInt16 = 40000
  var sequence: UInt32 = 1000
  var acknowledgement: UInt32 = 5000
  var flags: UInt8 = 16
  var text = ""

  var bytes: [UInt8] {
    let (guest, client): ([UInt8], [UInt8]) = ([10, 0, 0, 2], [10, 0, 0, 9])
    let addresses = isIncoming ? client + guest : guest + client
    let ports = isIncoming ? big(port, 2) + big(80, 2) : big(80, 2) + big(port, 2)
    var tcp = ports + big(sequence, 4) + big(acknowledgement, 4) + [5 << 4, flags, 2, 0, 0, 0, 0, 0] + Array(text.utf8)
    let sum = Self.sum(addresses + [0, 6] + big(tcp.count, 2) + tcp)
    tcp.replaceSubrange(16..<18, with: big(~sum & 0xffff, 2))
    let network: [UInt8] = [0x45, 0] + big(20 + tcp.count, 2) + [0, 1, 0x40, 0, 64, 6, 0, 0] + addresses
    return [UInt8](repeating: 0, count: 12) + [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0] + network + tcp
  }

  var key: FlowKey { Frame(Array(bytes[12...]).span).key }

  private func big(_ value: some BinaryInteger, _ count: Int) -> [UInt8] {
    (0..<count).map { UInt8(truncatingIfNeeded: value >> (8 * (count - 1 - $0))) }
  }

  private static func sum(_ bytes: [UInt8]) -> Int {
    var sum = 0
    for (index, byte) in bytes.enumerated() { sum += Int(byte) << (index % 2 == 0 ? 8 : 0) }
    while sum > 0xffff { sum = sum & 0xffff + sum >> 16 }
    return sum
  }

  /// Whether a frame's TCP checksum is right, by all of its bytes.
  static func hasRightChecksum(_ frame: [UInt8]) -> Bool {
    let tcp = Array(frame[46...])
    return sum(Array(frame[38..<46]) + [0, 6, UInt8(tcp.count >> 8), UInt8(tcp.count & 0xff)] + tcp) == 0xffff
  }
}

/// Both ends of a channel, the primary's first, without their threads.
func channels() throws -> (Channel, Channel) {
  var ends: [CInt] = [0, 0]
  #expect(unsafe socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
  let key = SharedKey([UInt8](repeating: 0x42, count: 32))
  let other = Mutex<Channel?>(nil)
  let box = Box(other)
  let end = ends[1]
  let thread = try HostThread.start(name: "handshake") {
    box.value.withLock { $0 = try? Channel(descriptor: end, side: .secondary, key: key) }
  }
  let mine = try Channel(descriptor: ends[0], side: .primary, key: key)
  thread.join()
  return (mine, try #require(box.value.withLock { $0 }))
}

final class Box<Value: ~Copyable & Sendable>: Sendable {
  let value: Mutex<Value>
  init(_ value: consuming Mutex<Value>) { self.value = value }
}

/// A tap that keeps what is sent through it, and has nothing to say: one end of a packet socket pair.
final class FakeTap: FrameBackend {
  let descriptor: CInt
  private let other: CInt
  let offloads: UInt64 = 0

  init() {
    var ends: [CInt] = [0, 0]
    #expect(unsafe socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &ends) == 0)
    (descriptor, other) = (ends[0], ends[1])
  }

  deinit {
    lx_close(descriptor)
    lx_close(other)
  }

  func setGuestOffloads(_ features: UInt64) {}
  func send(_ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory) -> SendResult
  { .dropped }
  func flush() -> Bool { true }

  /// What a client has sent.
  func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    max(0, unsafe recv(descriptor, buffer.baseAddress, buffer.count, Int32(MSG_DONTWAIT)))
  }

  func arrive(_ frame: [UInt8]) {
    _ = unsafe frame.withUnsafeBytes { unsafe Glibc.send(other, $0.baseAddress, $0.count, 0) }
  }

  /// What has left since the last call.
  func left() -> [[UInt8]] {
    var frames: [[UInt8]] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while true {
      let count = unsafe buffer.withUnsafeMutableBytes {
        unsafe recv(other, $0.baseAddress, $0.count, Int32(MSG_DONTWAIT))
      }
      guard count > 0 else { return frames }
      frames.append(Array(buffer[..<count]))
    }
  }
}

/// The second way of signs of life, over loopback.
func beatPaths() throws -> (listening: BeatPath, calling: BeatPath) {
  let free = try freePort()
  let listening = try BeatPath("127.0.0.1:\(free)", listens: true)
  return (listening, try BeatPath("127.0.0.1:\(free)", listens: false))
}

/// A port that the kernel chose is given up when a socket is disconnected: one is chosen here, to be asked for.
private func freePort() throws -> CInt {
  let path = try BeatPath("127.0.0.1:0", listens: true)
  return withExtendedLifetime(path) { lx_local_port(path.descriptor) }
}
