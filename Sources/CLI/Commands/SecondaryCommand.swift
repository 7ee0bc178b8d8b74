import ArgumentParser
import CLinux
import Devices
import Glibc
import MiniVMM
import Pair
import Replication
import Synchronization

struct SecondaryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "secondary", abstract: "Wait for a primary, follow it, and take over when it is lost.",
    discussion: """
      The machine is the primary's; taps and disks are this host's own. A disk is overwritten with the primary's.

      EXAMPLES:
        minivmm secondary --listen :7000 --key pair.key --net tap=tap1 --disk copy.img

      """ + ExitStatus.help)

  @Option(help: ArgumentHelp("Where to wait for the primary.", valueName: "host:port"))
  var listen: String

  @Option(help: ArgumentHelp("File with the key that both sides share.", valueName: "file"))
  var key: String

  @OptionGroup var machine: MachineOptions

  func run() throws {
    let key = try PairKey.read(key)
    let settings = try MachineSettings(machine, ConfigurationFile())
    let listener = unsafe lx_tcp_listen(listen)
    guard listener >= 0 else {
      throw Failure(
        "cannot listen at \(listen): \(unsafe String(cString: lx_strerror(-listener))); choose another address",
        .unavailable)
    }
    tell("pair: waiting for a primary at \(listen)")
    while true {
      let descriptor = lx_tcp_accept(listener)
      guard descriptor >= 0 else { continue }
      let channel: Channel
      do throws(ChannelError) { channel = try Channel(descriptor: descriptor, side: .secondary, key: key) } catch {
        tell("pair: refused a connection: \(error)")
        continue
      }
      lx_close(listener)
      throw try follow(channel, settings)
    }
  }

  private func follow(_ channel: Channel, _ settings: MachineSettings) throws -> ExitCode {
    let made = Mutex<Session?>(nil)
    let side = SecondarySide(refreshes: HostProbe.translationsGoStale())
    side.onRole = { tell("pair: now \($0.rawValue)") }
    let ending = side.follow(channel) { bytes in
      let (session, parts) = try Self.make(side, settings, PairDescription(decoding: bytes))
      made.withLock { $0 = session }
      return parts
    }
    switch ending {
    case .tookOver:
      guard let session = made.withLock({ $0 }) else { return .failure }
      return try session.run(isStarted: true)
    case .gaveUp(let why):
      throw Failure("the pair ended before this side could take over: \(why)", .protocolError)
    }
  }

  /// The machine that the primary describes, with this host's tap and disks.
  private static func make(
    _ side: SecondarySide, _ settings: MachineSettings, _ description: PairDescription
  ) throws -> (Session, SecondarySide.Parts) {
    var settings = settings
    guard description.disks.count == settings.description.disks.count else {
      throw Failure(
        "the primary has \(description.disks.count) disks, this side \(settings.description.disks.count); give as many",
        .badData)
    }
    guard description.mac.isEmpty == settings.description.cards.isEmpty else {
      throw Failure("one side has a network card and the other has none; give both one", .badData)
    }
    side.mode = description.mode
    settings.description.cpus = description.cpus
    settings.description.memory = description.memory
    settings.description.rollsBack = true
    settings.description.dirtyTracking = .bitmap
    var tap: (any FrameBackend)?
    if let card = settings.description.cards.first {
      guard case .tap(let name) = card.host else { throw ValidationError("a protected guest's card is on a tap") }
      tap = try TapBackend(name: name)
    }
    let successor = try PrimarySide(PrimarySide.Options(mode: description.mode), tap: tap)
    var backend: PairBackend?
    if let tap {
      let made = try PairBackend(tap: tap, side: .following, gate: successor.gate, log: InputLog(), traffic: side)
      settings.description.cards[0].host = .custom(made)
      settings.description.cards[0].mac = description.mac
      backend = made
    }
    var disks: [FollowerDisk] = []
    for (index, disk) in settings.description.disks.enumerated() {
      let file = try DiskFile(path: disk.path, readOnly: disk.readOnly)
      guard file.capacity == description.disks[index] else {
        throw Failure(
          "disk \(disk.path) has \(file.capacity) bytes, the primary's \(description.disks[index]); "
            + "run: truncate -s \(description.disks[index]) \(disk.path)", .badData)
      }
      let follower = try FollowerDisk(file)
      settings.description.disks[index].opened = follower
      disks.append(follower)
    }
    let session = try Session(settings)
    return (
      session,
      SecondarySide.Parts(
        machine: session.assembled.machine, backend: backend, disks: disks, mac: description.mac, tap: tap,
        successor: successor)
    )
  }
}
