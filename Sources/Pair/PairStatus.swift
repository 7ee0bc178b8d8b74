public import Replication

/// What a side tells of the pair's life: the `pair` object of a status reply. What a side can't know is left out.
public struct PairStatus: Codable, Equatable, Sendable {
  /// How a time is spread, in microseconds.
  public struct Times: Codable, Equatable, Sendable {
    public var p50: Double
    public var p99: Double
    public var max: Double
    public var count: UInt64

    /// - Parameter nanoseconds: what was recorded.
    init(_ nanoseconds: Histogram) {
      p50 = PairStatus.microseconds(nanoseconds.quantile(0.5))
      p99 = PairStatus.microseconds(nanoseconds.quantile(0.99))
      max = PairStatus.microseconds(nanoseconds.max)
      count = nanoseconds.count
    }
  }

  /// Pages a checkpoint.
  public struct Pages: Codable, Equatable, Sendable {
    public var last: UInt64
    public var p50: UInt64
    public var p99: UInt64
    public var max: UInt64

    init(_ pages: Histogram, last: UInt64) {
      self.last = last
      p50 = pages.quantile(0.5)
      p99 = pages.quantile(0.99)
      max = pages.max
    }
  }

  /// Output in the gate now, and what became of what was there.
  public struct Held: Codable, Equatable, Sendable {
    public var frames: UInt64
    public var bytes: UInt64
    /// How long the oldest frame has waited.
    public var oldestMicroseconds: Double
    /// Frames let out at once, because the secondary has said the same, and because of a checkpoint.
    public var atOnce: UInt64
    public var equal: UInt64
    public var checkpointed: UInt64
    /// Let out before the secondary had said as much, and flows in which it then said something else.
    public var early: UInt64
    public var contradicted: UInt64
    /// … that were found after a checkpoint had put them right.
    public var contradictedBefore: UInt64
    /// Times that the gate was full.
    public var refused: UInt64

    init(_ gate: OutputGate) {
      let (waiting, counters) = (gate.waiting, gate.counters)
      frames = UInt64(waiting.frames)
      bytes = UInt64(waiting.bytes)
      oldestMicroseconds = PairStatus.microseconds(waiting.oldest)
      atOnce = counters.atOnce
      equal = counters.equal
      checkpointed = counters.checkpointed
      early = counters.early
      contradicted = counters.contradicted
      contradictedBefore = counters.contradictedBefore
      refused = counters.refused
    }
  }

  public struct Comparator: Codable, Equatable, Sendable {
    public var primaryFrames: UInt64
    public var secondaryFrames: UInt64
    public var mismatches: UInt64
    public var overflows: UInt64
  }

  // MARK: Both sides

  public var role: Role
  /// Not known to a secondary before its first primary.
  public var mode: ReplicationMode?
  public var term: UInt64
  /// The newest checkpoint on which the secondary's machine stands.
  public var loaded: UInt64
  /// How long the secondary's machine takes to get to a checkpoint.
  public var loadMicroseconds: Times

  /// How long ago the newest sign of life came on each path, in milliseconds; nil where none has come from this peer.
  public struct Signs: Codable, Equatable, Sendable {
    public var channelMilliseconds: Double?
    public var beatsMilliseconds: Double?
  }
  /// Only while there is a peer.
  public var signs: Signs?

  /// What is wrong, or why the last secondary was lost.
  public var notice: String?

  /// How many of the guest's CPUs are active; known of a guest that can leave some idle.
  public var activeCPUs: Int?

  public init(role: Role, mode: ReplicationMode?, term: UInt64) {
    self.role = role
    self.mode = mode
    self.term = term
    loaded = 0
    loadMicroseconds = Times(Histogram())
  }

  // MARK: The primary

  /// The newest epoch that has ended, and the newest that the secondary has the checkpoint of.
  public var epoch: UInt64?
  public var received: UInt64?
  /// How much of RAM and disks has been copied for the first time, 0 to 1; only while that goes on.
  public var copying: Double?
  /// By ``CheckpointCause``.
  public var checkpoints: [String: UInt64]?
  /// How long checkpoints made the guest stand still, and what 0, 5, 10, … 100 % of the pauses did not exceed.
  public var pauseMicroseconds: Times?
  public var pauseSpreadMicroseconds: [Double]?
  public var dirtyPages: Pages?
  /// To all secondaries so far.
  public var bytesSent: UInt64?
  public var held: Held?
  /// How long frames were held that have been let out, and what 0, 5, 10, … 100 % of them did not exceed.
  public var heldMicroseconds: Times?
  public var heldSpreadMicroseconds: [Double]?
  /// From a frame of input to its acknowledgement; of one frame at a time.
  public var lagMicroseconds: Times?
  /// From the end of a checkpoint's pause until the secondary has all of it.
  public var receiveMicroseconds: Times?
  public var comparator: Comparator?

  /// Frames that did not leave early, by why. Of a guest that marks none, all are missing here.
  public struct NotEarly: Codable, Equatable, Sendable {
    /// The guest has not said what they are made of: they may confirm a write.
    public var unmarked: UInt64
    /// What they are made of has changed since the newest checkpoint.
    public var changed: UInt64
    /// It is not known as yet what the newest checkpoint holds there.
    public var unknown: UInt64
    /// More than may in an epoch, or the secondary has not been heard for too long.
    public var refused: UInt64
    /// It was not looked for, because little had left early when it was.
    public var unsought: UInt64
  }
  public var notEarly: NotEarly?
  /// Frames that left early, or were to, and had to wait for something first.
  public var earlyAwaited: OutputGate.Awaited?

  /// Of a survivor: pieces that its primary had let out early and its own guest said alike, and connections it had to reset.
  public var survivor: Survivor?

  public struct Survivor: Codable, Equatable, Sendable {
    public var equal: UInt64
    public var reset: UInt64
  }

  // MARK: The secondary

  /// Frames of input from the primary.
  public var inputFrames: UInt64?
  /// Pages that its guest had written and that a checkpoint made it forget.
  public var pagesRolledBack: UInt64?
  /// How often its guest ended where the primary's had not as yet, and was put back.
  public var ownEnds: UInt64?
  /// From when its guest goes on after a load until it has left CPUs idle, as it is asked to.
  public var shrinkMicroseconds: Times?

  /// What 0, 5, 10, … 100 % of times do not exceed.
  static func spread(_ times: Histogram) -> [Double] {
    stride(from: 0, through: 100, by: 5).map { microseconds(times.quantile(Double($0) / 100)) }
  }

  /// To a tenth.
  static func microseconds(_ nanoseconds: UInt64) -> Double { Double((nanoseconds + 50) / 100) / 10 }
}
