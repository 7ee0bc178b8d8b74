internal import Synchronization

/// What guests get wrong, counted: a mistake costs the guest its device, or the request, and never the VMM.
public enum GuestMistake: Int, CaseIterable, Sendable {
  /// Access width, offset or selector that no register has; write to a read-only register.
  case register
  /// A status the driver may not write, or out of order.
  case status
  /// Queue size or addresses that can't be used, or changed when frozen.
  case queueSetup
  /// A notification for a queue that does not exist or a device that does not run.
  case notify
  /// A malformed ring or chain: the device needs a reset.
  case chain
  /// A well-formed chain whose contents make no sense to the device.
  case request
}

/// Counters of one device. Any thread.
public final class MistakeCounters: Sendable {
  private let values: [AtomicCounter]

  public init() { values = GuestMistake.allCases.map { _ in AtomicCounter() } }

  @inline(never)
  public func add(_ mistake: GuestMistake) { values[mistake.rawValue].add(1) }

  public subscript(_ mistake: GuestMistake) -> UInt64 { values[mistake.rawValue].value }
  public var total: UInt64 { values.reduce(0) { $0 &+ $1.value } }
}

/// A statistic: relaxed, wrapping.
public final class AtomicCounter: Sendable {
  private let storage = Atomic<UInt64>(0)

  public init() {}

  @inline(__always)
  public func add(_ amount: UInt64) { _ = storage.wrappingAdd(amount, ordering: .relaxed) }
  public var value: UInt64 { storage.load(ordering: .relaxed) }
}
