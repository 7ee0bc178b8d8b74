import CLinux
import Devices
import Glibc
import MiniVMM
import Pair
import Replication

/// Sees to it that a guest that serves has a secondary: looks for one, protects the guest while there is one, and looks
/// again.
struct Protection: Sendable {
  /// Where a secondary is, or will be.
  struct Target: Sendable {
    var address: String
    /// Where its signs of life go besides the channel; nil for the same address.
    var heartbeat: String?
    var key: SharedKey

    /// The second way of signs of life, to where a connection has got.
    func beats(beside connection: CInt) throws(ChannelError) -> BeatPath {
      guard let heartbeat else { return try BeatPath(beside: connection) }
      return try BeatPath(heartbeat, listens: false)
    }
  }

  /// Microseconds between two attempts, and the most when each ends as the one before.
  private static let pause: UInt32 = 200_000
  private static let longestPause: UInt32 = 1_600_000
  /// How long a primary that may have been replaced asks its secondary, in nanoseconds; and for how long it may have been away to go
  /// on without an answer. In less than that no secondary takes over, gets a secondary of its own and is lost again.
  private static let asks: UInt64 = 2_000_000_000 * PrimarySide.stretch
  private static let mostAway: UInt64 = 1_000_000_000 * PrimarySide.stretch

  /// How long nobody listens before people hear of it, in nanoseconds.
  private static let expects: UInt64 = 5_000_000_000

  let side: PrimarySide
  let machine: Machine
  let backend: PairBackend?
  let disks: [MirroredDisk]
  let target: Target
  let description: [UInt8]
  let filters: SeccompFilters

  func start() throws {
    side.onRole = { tell("pair: now \($0.rawValue): \($1)") }
    side.tellProgress { tell("pair: \($0)") }
    _ = try HostThread.start(name: "pair") {
      AssembledMachine.restrict(filters, .pair)
      seek()
    }
  }

  private func seek() {
    var told = ""
    var pause = Self.pause
    var asked = lx_monotonic_ns()
    var isMissed = false
    while machine.end == nil {
      do throws(ChannelError) {
        let (channel, beats) = try connect()
        // It serves nobody.
        if side.mustAsk { side.goOn(backend) }
        tell("pair: a secondary is at \(target.address)")
        let why = side.protect(machine, backend: backend, disks: disks, channel: channel, beats: beats)
        if machine.end != nil { return }
        if side.status.role == .fenced { return end() }
        asked = lx_monotonic_ns()
        if side.mustAsk {
          tell(
            "pair: \(why); this side was stopped for \(side.away / 1_000_000) ms, and its secondary may serve by now: "
              + "nothing leaves until one answers at \(target.address)")
        } else {
          tell("pair: alone: \(why)")
        }
        (told, pause, isMissed) = ("", Self.pause, false)
      } catch {
        if case .replaced(let term) = error {
          side.replaced(in: term)
          return end()
        }
        // While it is known that another serves, no silence before or after says that nobody does.
        if case .served = error { asked = lx_monotonic_ns() }
        if side.mustAsk, side.away < Self.mostAway, error.isRefused || lx_monotonic_ns() - asked > Self.asks {
          side.goOn(backend)
          if side.away > 0 { tell("pair: alone: nobody serves at \(target.address)") }
        }
        // Nobody is there as yet: what `status` says as well.
        let isExpected = error.isRefused
        if isExpected, !isMissed, lx_monotonic_ns() - asked > Self.expects {
          isMissed = true
          tell(
            "pair: nobody listens at \(target.address), and the guest is not protected: start `minivmm secondary` there, or "
              + "correct --replicate")
        }
        if told == "\(error)" {
          pause = isExpected ? Self.pause : min(2 * pause, Self.longestPause)
        } else {
          pause = Self.pause
          if !isExpected { tell("pair: \(target.address): \(error)") }
        }
        told = "\(error)"
      }
      usleep(pause)
    }
  }

  private func end() {
    tell("pair: another has taken over; this guest ends")
    machine.stop()
  }

  /// Both ways to a secondary that follows this machine.
  private func connect() throws(ChannelError) -> (Channel, BeatPath) {
    let descriptor = unsafe lx_tcp_connect(target.address)
    guard descriptor != -EADDRNOTAVAIL else { throw .unresolved(target.address) }
    guard descriptor >= 0 else { throw .system(operation: ChannelError.connecting, errno: -descriptor) }
    let beats: BeatPath
    do throws(ChannelError) { beats = try target.beats(beside: descriptor) } catch {
      lx_close(descriptor)
      throw error
    }
    let channel = try Channel(descriptor: descriptor, side: .primary, key: target.key)
    try channel.awaitAdmission(description, term: side.term)
    return (channel, beats)
  }
}

extension ChannelError {
  fileprivate static let connecting = "connecting"
  /// The other host says that nobody listens there.
  fileprivate var isRefused: Bool { self == .system(operation: Self.connecting, errno: ECONNREFUSED) }
}
