/// How a pair decides what may leave the primary. One policy function, so that modes can be compared fairly.
public enum ReplicationMode: String, Codable, Sendable, CaseIterable {
  /// Everything leaves at once: unprotected.
  case none
  /// Output waits for the checkpoint that ends its epoch.
  case remus
  /// Output leaves when the secondary has put out the same, or after a checkpoint that covers it.
  case colo
  /// As `colo`, or at once when all that it says is in checkpoints that the secondary has.
  case coloPlusPlus = "colo++"

  /// Whether the secondary's guest runs along and what it says counts.
  public var compares: Bool { self == .colo || self == .coloPlusPlus }
}

/// What is known of one frame that the primary's guest has sent.
public struct OutputFacts: Equatable, Sendable {
  public enum Comparison: Equatable, Sendable {
    /// The secondary has not put out its counterpart yet.
    case pending
    /// Everything in it the secondary has put out as well.
    case equal
    /// The secondary has put out something else.
    case different
  }

  /// The epoch in which it was sent. Epochs are counted from 1 by both sides; checkpoint n ends epoch n.
  public var epoch: UInt64
  /// How many frames of input the primary's guest had been given by then, since the pair was formed.
  public var inputGiven: UInt64
  public var comparison: Comparison
  /// The checkpoint from which on, in every one up to the newest that has been cut, the frame's sources hold what it says;
  /// 0 where it has none. Nil when that is not known, or the guest has not marked it as confirming nothing.
  public var synchronisedBy: UInt64?

  public init(epoch: UInt64, inputGiven: UInt64, comparison: Comparison = .pending, synchronisedBy: UInt64? = nil) {
    self.epoch = epoch
    self.inputGiven = inputGiven
    self.comparison = comparison
    self.synchronisedBy = synchronisedBy
  }
}

/// What the secondary has said so far.
public struct SecondaryProgress: Equatable, Sendable {
  /// The newest checkpoint that the secondary holds whole and verified (RECEIVED); 0 before the first.
  public var received: UInt64
  /// How many frames of input it has, counted like ``OutputFacts/inputGiven``.
  public var inputAcknowledged: UInt64

  public init(received: UInt64 = 0, inputAcknowledged: UInt64 = 0) {
    self.received = received
    self.inputAcknowledged = inputAcknowledged
  }
}

/// The release rule. Whatever leaves the primary is a promise that the survivor must be able to keep, so it may leave only
/// when the secondary could have said it too.
public enum ReleasePolicy {
  public enum Verdict: Equatable, Sendable {
    case release
    /// Before the secondary has said as much: it is told first.
    case releaseEarly
    case hold
    /// Held, and only a checkpoint can release it.
    case holdForCheckpoint
  }

  /// For the first frame of a flow that has not left: those behind it wait for it (``OutputGate``).
  /// - Parameter isDistrusted: whether something wrong left this flow early, which no checkpoint that the secondary holds has put
  ///   right. Asked only where it matters.
  public static func verdict(
    _ facts: OutputFacts, mode: ReplicationMode, secondary: SecondaryProgress,
    isDistrusted: @autoclosure () -> Bool = false
  ) -> Verdict {
    if mode == .none { return .release }
    // The input rule. A frame tells the client what was received (its ACK), so that input must be on both sides first:
    // else the survivor could not even ask for it again.
    guard facts.inputGiven <= secondary.inputAcknowledged else { return .hold }
    // A checkpoint of its epoch contains the state that the frame speaks of, and that it was sent.
    if facts.epoch <= secondary.received { return .release }
    guard mode.compares else { return .hold }
    switch facts.comparison {
    case .equal: return .release
    case .different: return .holdForCheckpoint
    case .pending:
      // From whichever checkpoint the survivor goes on, it finds there what the frame was made of.
      guard mode == .coloPlusPlus, let first = facts.synchronisedBy, first <= secondary.received, !isDistrusted() else {
        return .hold
      }
      return .releaseEarly
    }
  }
}
