import ArgumentParser
import CLinux
import Devices
import MiniVMM
import Pair
import Replication

/// What a secondary has of its own, whichever primary comes: KVM, its tap and disks, opened once and before it becomes another
/// user.
struct FollowerResources: Sendable {
  let kvm: KVMSystem
  /// Whether KVM must be made to forget translations after a load.
  let refreshes: Bool
  private let tap: TapBackend?
  private var disks: [DiskFile] = []
  /// The second way of signs of life, towards the primary.
  let beats: BeatPath
  let shrink: Shrink
  /// For the threads that make and follow: what they hear comes from another host.
  let filters: SeccompFilters

  /// - Parameter beats: where the primary's signs of life come to, besides the channel.
  init(_ settings: MachineSettings, beats: String, shrink: Shrink) throws {
    self.shrink = shrink
    self.beats = try BeatPath(beats, listens: true)
    kvm = try KVMSystem()
    tap = try protectedTap(settings.description)
    for disk in settings.description.disks {
      guard !disk.readOnly else {
        throw ValidationError("disk \(disk.path): a protected guest's disks are writable; leave out ,ro")
      }
      disks.append(try DiskFile(path: disk.path, readOnly: false, isRaw: disk.isRaw))
    }
    filters = try SeccompFilters(
      mode: settings.description.seccomp, exitCode: settings.description.seccompExitCode)
    refreshes = HostProbe.translationsGoStale()
  }

  /// Settings for the machine that a primary describes, and the parts that go with it.
  func machine(
    _ settings: MachineSettings, _ description: PairDescription, _ side: SecondarySide, _ next: Protection.Target?
  ) throws -> (MachineSettings, (AssembledMachine) -> (SecondarySide.Parts, Protection?)) {
    var settings = settings
    if let lack = try kvm.hostProcessor().lacks(of: description.processor) {
      throw Failure("the guest could not go on here: \(lack); use hosts with the same processors", .badData)
    }
    guard description.disks.count == disks.count else {
      throw Failure(
        "the primary's disks are \(description.disks.count), this side's \(disks.count); give both as many", .badData)
    }
    guard description.mac.isEmpty == (tap == nil) else {
      throw Failure("one side has a network card and the other has none; give both one", .badData)
    }
    settings.description.cpus = description.cpus
    settings.description.memory = description.memory
    settings.description.rollsBack = true
    settings.description.dirtyTracking = .bitmap
    let successor = try PrimarySide(
      PrimarySide.Options(mode: description.mode, period: description.period), tap: tap)
    var backend: PairBackend?
    if let tap {
      let made = try PairBackend(tap: tap, side: .following, gate: successor.gate, log: InputLog(), traffic: side)
      settings.description.cards[0].host = .custom(made)
      settings.description.cards[0].mac = description.mac
      backend = made
    }
    var followers: [FollowerDisk] = []
    var mirrors: [MirroredDisk] = []
    for (index, file) in disks.enumerated() {
      guard file.capacity == description.disks[index] else {
        let path = settings.description.disks[index].path
        throw Failure(
          "disk \(path) has \(file.capacity) bytes, the primary's \(description.disks[index]); "
            + "run: truncate -s \(description.disks[index]) \(path)", .badData)
      }
      let follower = try FollowerDisk(file)
      // The guest's changes go to its next secondary, once it has taken over and has one.
      let mirror = MirroredDisk(follower)
      settings.description.disks[index].opened = mirror
      followers.append(follower)
      mirrors.append(mirror)
    }
    let (made, opened, mirrored) = (backend, followers, mirrors)
    return (
      settings,
      { assembled in
        (
          SecondarySide.Parts(
            machine: assembled.machine, backend: made, disks: opened, mac: description.mac, tap: tap,
            successor: successor, registers: assembled.pair),
          next.map { next in
            Protection(
              side: successor, machine: assembled.machine, backend: made, disks: mirrored, target: next,
              description: description.encoded, filters: filters)
          }
        )
      }
    )
  }
}
