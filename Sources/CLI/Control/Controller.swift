import CLinux
import Devices
import GuestMemory
import MiniVMM
import Pair

/// What the control socket's requests do. Main thread.
final class Controller: Sendable {
  private let assembled: AssembledMachine
  /// The guest's side of a pair, if it is one of a pair.
  private let pair: (any PairSide)?
  private let turn: MachineTurn
  private let stop: @Sendable () -> Void

  init(_ assembled: AssembledMachine, pair: (any PairSide)?, stop: @escaping @Sendable () -> Void) {
    self.assembled = assembled
    self.pair = pair
    turn = pair?.turn ?? MachineTurn()
    self.stop = stop
  }

  func answer(_ request: ControlRequest, descriptor: CInt) -> ControlReply {
    switch request.command {
    case .status: return status()
    case .pause: return reply(pause: turn.pause(assembled.machine).total)
    case .resume:
      turn.resume(assembled.machine)
      return reply()
    case .snapshot: return snapshot(descriptor, stayPaused: request.stayPaused ?? false)
    case .stop:
      stop()
      return reply()
    case .checkpoint: return ask { (pair) throws(PairRefusal) in try pair.takeCheckpoint() }
    case .failover:
      return ask { (pair) throws(PairRefusal) in
        try pair.failOver()
        return nil
      }
    }
  }

  /// - Parameter request: may return an epoch.
  private func ask(_ request: (any PairSide) throws(PairRefusal) -> UInt64?) -> ControlReply {
    guard let pair else {
      return .failure("this guest is not one of a pair; start it with `minivmm primary` or `minivmm pair`")
    }
    do throws(PairRefusal) {
      let epoch = try request(pair)
      var answer = reply()
      answer.epoch = epoch
      answer.pair = pair.status
      return answer
    } catch { return .failure("\(error)") }
  }

  private func snapshot(_ descriptor: CInt, stayPaused: Bool) -> ControlReply {
    guard descriptor >= 0 else {
      return .failure("snapshot needs an open file sent with the request (SCM_RIGHTS); use `minivmm snapshot`")
    }
    do {
      let (size, time) = try turn.borrow(assembled.machine, stayPaused: stayPaused) {
        let start = lx_monotonic_ns()
        assembled.machine.pause()
        let state = try assembled.machine.save()
        let size = try SnapshotFile.write(
          state: state, disks: assembled.identifyDisks(), memory: assembled.memory, to: descriptor)
        return (size, lx_monotonic_ns() - start)
      }
      var answer = reply(pause: time)
      answer.snapshotBytes = size
      return answer
    } catch {
      return .failure("\(error)")
    }
  }

  private func status() -> ControlReply {
    var answer = reply()
    answer.cpus = assembled.machine.cpus
    answer.memoryBytes = assembled.memory.size
    answer.pair = pair?.status
    answer.devices = assembled.transports.map { transport in
      var mistakes: [String: UInt64] = [:]
      for kind in GuestMistake.allCases where transport.mistakes[kind] != 0 {
        mistakes["\(kind)"] = transport.mistakes[kind]
      }
      var counters: [String: UInt64] = [:]
      var isLost = false
      if transport.name.hasPrefix("net"), let index = Int(transport.name.dropFirst(3)) {
        let statistics = assembled.cards[index].statistics
        counters = [
          "receivedFrames": statistics.receivedFrames.value, "sentFrames": statistics.sentFrames.value,
          "droppedReceive": statistics.droppedReceive.value, "droppedTransmit": statistics.droppedTransmit.value,
          "backendLost": statistics.backendLost.value, "backendRegained": statistics.backendRegained.value,
        ]
        isLost = statistics.isBackendLost
      }
      return ControlReply.DeviceStatus(
        name: transport.name, backend: isLost ? "lost" : nil, mistakes: mistakes, counters: counters)
    }
    return answer
  }

  private func reply(pause: UInt64? = nil) -> ControlReply {
    var reply = ControlReply(ok: true)
    reply.state = turn.isPaused ? "paused" : "running"
    reply.pauseMilliseconds = pause.map { Double($0) / 1e6 }
    return reply
  }
}
