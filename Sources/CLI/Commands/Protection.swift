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
    while machine.end == nil {
      do throws(ChannelError) {
        let (channel, beats) = try connect()
        tell("pair: a secondary is at \(target.address)")
        let why = side.protect(machine, backend: backend, disks: disks, channel: channel, beats: beats)
        if machine.end != nil { return }
        if side.status.role == .fenced {
          tell("pair: another has taken over; this guest ends")
          machine.stop()
          return
        }
        tell("pair: alone: \(why)")
        (told, pause) = ("", Self.pause)
      } catch {
        // Nobody is there as yet: what `status` says as well.
        let isExpected = error == .system(operation: Self.connecting, errno: ECONNREFUSED)
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

  private static let connecting = "connecting"

  /// Both ways to a secondary that follows this machine.
  private func connect() throws(ChannelError) -> (Channel, BeatPath) {
    let descriptor = unsafe lx_tcp_connect(target.address)
    guard descriptor != -EADDRNOTAVAIL else { throw .unresolved(target.address) }
    guard descriptor >= 0 else { throw .system(operation: Self.connecting, errno: -descriptor) }
    let beats: BeatPath
    do throws(ChannelError) { beats = try target.beats(beside: descriptor) } catch {
      lx_close(descriptor)
      throw error
    }
    let channel = try Channel(descriptor: descriptor, side: .primary, key: target.key)
    try channel.awaitAdmission(description)
    return (channel, beats)
  }
}
