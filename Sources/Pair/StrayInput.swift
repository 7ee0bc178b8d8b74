internal import CLinux
internal import Devices

/// What a secondary's tap gets while another serves: broadcasts, and whatever a bridge floods because it does not know where the
/// guest is. The primary gets all of that as well. If it stayed in the tap, a survivor's guest would be given it whenever it takes
/// over: a datagram of long ago, once more.
///
/// So the tap is emptied all the time, and a survivor is given what came after the primary's last word: of such a frame nobody can
/// have been told anything.
struct StrayInput {
  private static let frames = 512
  private static let bytes = 4 << 20
  /// Frames read at a time; a flood must not keep a thread.
  private static let visit = 2048

  /// Each has come at `since` or later, in monotonic nanoseconds.
  private var ring: [(since: UInt64, frame: [UInt8])] = []
  private var size = 0
  /// The tap said that it has gone.
  private(set) var isTapLost = false
  /// Everything that came before this time has been read.
  private var emptied: UInt64 = 0
  private var buffer = [UInt8](repeating: 0, count: 1 << 17)

  /// Takes in what waits in `tap`, or what of it can be within a time, in nanoseconds.
  mutating func drain(
    _ tap: any FrameBackend, within limit: UInt64 = .max, clock: () -> UInt64 = { lx_monotonic_ns() }
  ) {
    let start = clock()
    for _ in 0..<Self.visit {
      let now = clock()
      if now - start > limit { return }
      let count = unsafe buffer.withUnsafeMutableBytes { unsafe tap.receive(into: $0) }
      guard count > 0 else {
        isTapLost = isTapLost || count < 0
        return emptied = now
      }
      ring.append((emptied, Array(buffer[..<count])))
      size += count
      while ring.count > Self.frames || size > Self.bytes { size -= ring.removeFirst().frame.count }
    }
  }

  /// The frames that came at `time` or later, in their order; afterwards there are none.
  /// - Parameter given: frames that the primary had too, and told of. Its word may have come by a faster way than the frame itself.
  mutating func take(since time: UInt64, without given: @autoclosure () -> [[UInt8]] = []) -> [[UInt8]] {
    defer {
      ring = []
      size = 0
    }
    let frames = ring.filter { $0.since >= time }.map(\.frame)
    if frames.isEmpty { return [] }
    let known = Set(given().map { $0.dropFirst(NetHeader.size) })
    return frames.filter { !known.contains($0.dropFirst(NetHeader.size)) }
  }
}
