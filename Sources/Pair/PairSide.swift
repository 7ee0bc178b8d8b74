public import MiniVMM
internal import Synchronization

/// What may be asked of one side of a pair while it works. From any thread but the pair's own.
public protocol PairSide: AnyObject, Sendable {
  var status: PairStatus { get }
  /// Whose turn it is to pause and resume this side's machine.
  var turn: MachineTurn { get }
  /// Takes a checkpoint; returns its epoch once the secondary has all of it. Blocks for some seconds at most.
  func takeCheckpoint() throws(PairRefusal) -> UInt64
  /// Makes the secondary take over; returns once this side plays its new part. Blocks for some seconds at most.
  func failOver() throws(PairRefusal)
}

/// Why a side does not do as asked: cause and cure.
public struct PairRefusal: Error, Equatable, Sendable, CustomStringConvertible {
  public let description: String
  public init(_ description: String) { self.description = description }
}

/// Several threads pause and resume a machine: whoever takes checkpoints, and whoever speaks for the user. One at a time.
public final class MachineTurn: Sendable {
  /// Whether the user wants the machine to stand still.
  private let staysPaused = Mutex(false)

  public init() {}

  public var isPaused: Bool { staysPaused.withLock { $0 } }

  /// Pauses a machine until ``resume(_:)``, whatever happens in between.
  public func pause(_ machine: Machine) -> PauseReport {
    staysPaused.withLock { stays in
      stays = true
      return machine.pause()
    }
  }

  public func resume(_ machine: Machine) {
    staysPaused.withLock { stays in
      stays = false
      machine.resume()
    }
  }

  /// Works on a machine that `body` has paused or pauses; afterwards it runs, unless the user has paused it.
  public func borrow<R>(_ machine: Machine, stayPaused: Bool = false, _ body: () throws -> R) rethrows -> R {
    try staysPaused.withLock { stays in
      defer { if !stays { machine.resume() } }
      let result = try body()
      if stayPaused { stays = true }
      return result
    }
  }

  /// Keeps others from the machine.
  public func withTurn<R>(_ body: () throws -> R) rethrows -> R { try staysPaused.withLock { _ in try body() } }
}
