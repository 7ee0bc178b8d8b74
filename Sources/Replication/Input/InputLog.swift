internal import Synchronization

/// The secondary's record of what came from the wire: every frame since the last checkpoint that it has loaded, because a
/// rolled back guest must be given them again. From any thread.
///
/// Frames are counted from 1, alike on both sides. Checkpoint state contains the first `given` of them.
public final class InputLog: Sendable {
  private struct State {
    /// Frame numbers `dropped + 1 ...` are in ``frames``, from ``head`` on.
    var dropped: UInt64 = 0
    var frames: [[UInt8]] = []
    var head = 0
    /// Those before ``head`` are given back up to here.
    var freed = 0
    /// Of all that are not given back.
    var bytes = 0
    /// How many frames the guest has been given.
    var given: UInt64 = 0

    var end: UInt64 { dropped + UInt64(frames.count - head) }

    /// Gives back the memory of so many dropped frames at the most; false when none is left.
    mutating func free(atMost count: Int) -> Bool {
      for index in freed..<min(head, freed + count) {
        bytes -= frames[index].count
        frames[index] = []
        freed += 1
      }
      guard freed == head else { return true }
      if head > 1024, head * 2 > frames.count {
        frames.removeFirst(head)
        (head, freed) = (0, 0)
      }
      return false
    }
  }

  /// Bytes that may be kept; beyond them a checkpoint is overdue.
  public let byteLimit: Int
  private let state = Mutex(State())

  public init(byteLimit: Int = 64 << 20) { self.byteLimit = byteLimit }

  public enum Refusal: Error, Equatable, Sendable {
    /// A frame number that does not follow the last one.
    case outOfOrder(expected: UInt64, got: UInt64)
    case full
    /// A checkpoint that claims input which never came, or which was dropped.
    case unknownInput(given: UInt64)
  }

  /// A frame from the primary, with its number.
  public func append(_ number: UInt64, _ frame: [UInt8]) throws(Refusal) {
    let refusal: Refusal? = state.withLock { state in
      guard number == state.end + 1 else { return .outOfOrder(expected: state.end + 1, got: number) }
      if state.bytes + frame.count > byteLimit { while state.free(atMost: 64) {} }
      guard state.bytes + frame.count <= byteLimit else { return .full }
      state.frames.append(frame)
      state.bytes += frame.count
      return nil
    }
    if let refusal { throw refusal }
  }

  /// Bytes that are kept, of dropped frames as well.
  var keptBytes: Int { state.withLock { $0.bytes } }
  /// How many frames have come: what is acknowledged to the primary.
  public var received: UInt64 { state.withLock { $0.end } }
  /// How many the guest has been given.
  public var given: UInt64 { state.withLock { $0.given } }
  public var isEmpty: Bool { state.withLock { $0.given == $0.end } }

  /// The next frame for the guest: copied into `buffer`, its size in bytes; 0 when there is none. A frame larger than the
  /// buffer is passed over.
  public func next(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    state.withLock { state in
      while state.given < state.end {
        let index = state.head + Int(state.given - state.dropped)
        state.given += 1
        let count = state.frames[index].count
        guard count <= buffer.count else { continue }
        unsafe state.frames[index].withUnsafeBytes { unsafe buffer.copyMemory(from: $0) }
        return count
      }
      return 0
    }
  }

  /// What has come since the last checkpoint that was loaded, given to the guest or not.
  public var sinceCheckpoint: [[UInt8]] { state.withLock { Array($0.frames[$0.head...]) } }

  /// What of that the guest has been given.
  public var givenSinceCheckpoint: [[UInt8]] {
    state.withLock { Array($0.frames[$0.head..<$0.head + Int($0.given - $0.dropped)]) }
  }

  /// Frames for the guest behind what it has not been given yet: a survivor's, which nobody counts any more.
  public func add(_ frames: [[UInt8]]) { state.withLock { $0.frames += frames } }

  /// The guest is put back to a checkpoint that was taken when `given` frames had been given: they are dropped, and those
  /// after them are given again. Takes constant time, because the guest waits; ``trim()`` gives their memory back.
  public func rewind(toCheckpointAfter given: UInt64) throws(Refusal) {
    let refusal: Refusal? = state.withLock { state in
      guard given >= state.dropped, given <= state.end else { return .unknownInput(given: given) }
      state.head += Int(given - state.dropped)
      state.dropped = given
      state.given = given
      return nil
    }
    if let refusal { throw refusal }
  }

  /// Gives back the memory of what was dropped, a little at a time.
  public func trim() { while state.withLock({ $0.free(atMost: 64) }) {} }
}
