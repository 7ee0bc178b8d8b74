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

    /// The second way of signs of life. Without it, should the address be unknown as yet, the channel is the only one.
    func beats() -> BeatPath? { try? BeatPath(heartbeat ?? address, listens: false) }
  }

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
    while machine.end == nil {
      let descriptor = unsafe lx_tcp_connect(target.address)
      if descriptor >= 0 {
        do throws(ChannelError) {
          let channel = try Channel(descriptor: descriptor, side: .primary, key: target.key)
          try channel.awaitAdmission()
          tell("pair: a secondary is at \(target.address)")
          let why = side.protect(machine, backend: backend, disks: disks, channel: channel, description: description)
          if machine.end != nil { return }
          if side.status.role == .fenced {
            tell("pair: another has taken over; this guest ends")
            machine.stop()
            return
          }
          tell("pair: alone: \(why)")
          told = ""
        } catch {
          if told != "\(error)" { tell("pair: \(target.address): \(error)") }
          told = "\(error)"
        }
      }
      usleep(200_000)
    }
  }
}
