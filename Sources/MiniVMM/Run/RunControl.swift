internal import Synchronization

/// What the vCPU threads of a machine are asked to do, and how far they are.
///
/// A request is set before the threads are kicked; a thread that leaves KVM_RUN clears its immediate_exit before it reads
/// the request. So a kick is never lost, and a late one costs one empty KVM_RUN.
final class RunControl: Sendable {
  enum Request: UInt8 { case run, pause, stop }

  private struct Threads: Sendable {
    /// Started and not yet ended.
    var present = 0
    var parked = 0
    var end: MachineEnd?
    /// The guest has ended, but may be put back to where it had not.
    var heldEnd: MachineEnd?
    var holdsEnds = false
  }

  /// What became of an end.
  enum Ending { case final, held, known }

  private let threads = Monitor(Threads())
  /// Changed under the monitor's lock, read without it.
  private let request = Atomic<UInt8>(Request.pause.rawValue)

  @inline(__always)
  var requested: Request { Request(rawValue: request.load(ordering: .sequentiallyConsistent)) ?? .stop }

  // MARK: vCPU threads

  /// Before a thread starts.
  func threadStarts() { threads.change { $0.present += 1 } }
  /// The last thing a thread does.
  func threadEnds() { threads.change { $0.present -= 1 } }

  /// Waits while a pause is asked for; what to do next.
  func park() -> Request {
    threads.change { $0.parked += 1 }
    return threads.wait { threads in
      let request = requested
      guard request != .pause else { return nil }
      threads.parked -= 1
      return request
    }
  }

  // MARK: Control

  /// Asks for something. A machine that has ended stays at stop, one whose end is held at pause. The caller kicks the
  /// threads then.
  func ask(_ new: Request) {
    threads.change { threads in
      guard threads.end == nil, threads.heldEnd == nil else { return }
      request.store(new.rawValue, ordering: .sequentiallyConsistent)
    }
  }

  /// Returns when every thread is parked or gone.
  func waitUntilParked() {
    threads.wait { $0.parked == $0.present ? () : nil }
  }

  /// Records why the machine ends and asks every thread to stop, or to park if the end is held. The first cause counts.
  func end(_ end: MachineEnd) -> Ending {
    threads.change { threads in
      guard threads.end == nil else { return .known }
      if threads.holdsEnds, end.isTheGuests {
        guard threads.heldEnd == nil else { return .known }
        threads.heldEnd = end
        request.store(Request.pause.rawValue, ordering: .sequentiallyConsistent)
        return .held
      }
      threads.end = end
      request.store(Request.stop.rawValue, ordering: .sequentiallyConsistent)
      return .final
    }
  }

  /// Whether ends are held from now on; returns one that was, which is forgotten with it.
  func holdEnds(_ holds: Bool) -> MachineEnd? {
    threads.change { threads in
      threads.holdsEnds = holds
      return threads.heldEnd.take()
    }
  }

  var end: MachineEnd? { threads.withLock { $0.end } }

  func waitForEnd() -> MachineEnd { threads.wait { $0.end } }
}
