extension OutputGate {
  /// What has gone through the gate so far.
  public struct Counters: Equatable, Sendable {
    /// Frames that left at once, after equal output, and after a checkpoint.
    public var atOnce: UInt64 = 0
    public var equal: UInt64 = 0
    public var checkpointed: UInt64 = 0
    /// Frames that left before the secondary had said as much, and differences found in their flows afterwards.
    public var early: UInt64 = 0
    public var contradicted: UInt64 = 0
    /// Differences found after a checkpoint that had put them right already.
    public var contradictedBefore: UInt64 = 0
    /// Frames that may leave early and had to wait for something first: by what (each counted once, by the first of these).
    public var awaited = Awaited()
    /// Nanoseconds that frames were held which did not leave early: the sum.
    public var waitedTime: UInt64 = 0
    /// Frames refused because the gate was full; their guest sends them again later.
    public var refused: UInt64 = 0
  }

  /// What frames that may leave early had to wait for.
  public struct Awaited: Codable, Equatable, Sendable {
    /// The secondary did not have the input that it stems from.
    public var input: UInt64 = 0
    /// A frame before it in its flow was held.
    public var earlier: UInt64 = 0
    /// The checkpoint that holds what it is made of was on its way.
    public var checkpoint: UInt64 = 0
    /// Something wrong had left its flow early.
    public var distrusted: UInt64 = 0
  }

  /// A frame that leaves, with its virtio-net header.
  struct Leaving: Sendable {
    var bytes: [UInt8]
    /// It leaves before the secondary has said as much, which has to be told first: how to ask for that; else 0.
    var told: UInt64
  }

  public enum Admission: Equatable, Sendable {
    /// It has left, or will; what to call it when it is compared.
    case admitted(token: UInt64)
    /// No room: the caller keeps the frame and asks for a checkpoint.
    case full
  }
}
