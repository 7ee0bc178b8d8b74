import CLinux
import Devices
import GuestMemory
import MiniVMM
import Synchronization

/// What the control socket's requests do. Control thread.
final class Controller: Sendable {
  private let assembled: AssembledMachine
  private let stop: @Sendable () -> Void
  private let paused = Mutex(false)

  init(_ assembled: AssembledMachine, stop: @escaping @Sendable () -> Void) {
    self.assembled = assembled
    self.stop = stop
  }

  func answer(_ request: ControlRequest, descriptor: CInt) -> ControlReply {
    switch request.command {
    case .status: return status()
    case .pause:
      let report = assembled.machine.pause()
      paused.withLock { $0 = true }
      return reply(pause: report.total)
    case .resume:
      assembled.machine.resume()
      paused.withLock { $0 = false }
      return reply()
    case .snapshot: return snapshot(descriptor, stayPaused: request.stayPaused ?? false)
    case .stop:
      stop()
      return reply()
    }
  }

  private func snapshot(_ descriptor: CInt, stayPaused: Bool) -> ControlReply {
    guard descriptor >= 0 else {
      return .failure("snapshot needs an open file sent with the request (SCM_RIGHTS); use `minivmm snapshot`")
    }
    let wasPaused = paused.withLock { $0 }
    let start = lx_monotonic_ns()
    assembled.machine.pause()
    defer {
      if !wasPaused, !stayPaused { assembled.machine.resume() } else { paused.withLock { $0 = true } }
    }
    do {
      let state = try assembled.machine.save()
      let size = try SnapshotFile.write(state: state, memory: assembled.memory, to: descriptor)
      var answer = reply(pause: lx_monotonic_ns() - start)
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
    answer.devices = assembled.transports.map { transport in
      var mistakes: [String: UInt64] = [:]
      for kind in GuestMistake.allCases where transport.mistakes[kind] != 0 {
        mistakes["\(kind)"] = transport.mistakes[kind]
      }
      var counters: [String: UInt64] = [:]
      if transport.name.hasPrefix("net"), let index = Int(transport.name.dropFirst(3)) {
        let statistics = assembled.cards[index].statistics
        counters = [
          "receivedFrames": statistics.receivedFrames.value, "sentFrames": statistics.sentFrames.value,
          "droppedReceive": statistics.droppedReceive.value, "droppedTransmit": statistics.droppedTransmit.value,
          "backendLost": statistics.backendLost.value,
        ]
      }
      return ControlReply.DeviceStatus(name: transport.name, mistakes: mistakes, counters: counters)
    }
    return answer
  }

  private func reply(pause: UInt64? = nil) -> ControlReply {
    var reply = ControlReply(ok: true)
    reply.state = paused.withLock { $0 } ? "paused" : "running"
    reply.pauseMilliseconds = pause.map { Double($0) / 1e6 }
    return reply
  }
}
