import ArgumentParser
import CLinux
import Devices
import Glibc
import MiniVMM
import Pair
import Replication

struct PrimaryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "primary", abstract: "Boot a guest and protect it by a secondary.",
    discussion: """
      Everything of `run`, and where the secondary listens. Until it is there, and when it is lost, the guest runs
      unprotected; it is looked for again all the time.

      EXAMPLES:
        (umask 077; head -c 32 /dev/urandom > pair.key)     # the same file on both hosts
        minivmm secondary --listen :7000 --key pair.key --net tap=tap1 --disk copy.img
        minivmm primary --kernel vmlinux --net tap=tap0 --disk root.img --replicate backup:7000 --key pair.key

      """ + ExitStatus.help)

  @OptionGroup var guest: RunCommand

  @Option(help: ArgumentHelp("Where the secondary listens.", valueName: "host:port"))
  var replicate: String

  @Option(help: ArgumentHelp("File with the key that both sides share.", valueName: "file"))
  var key: String

  @Option(
    help: ArgumentHelp(
      "Where the secondary's --heartbeat listens, on another network; UDP. As --replicate if left out.",
      valueName: "host:port"))
  var heartbeat: String?

  @Option(
    help: """
      What may leave when: none, remus (after the checkpoint), colo (when both say the same) or colo++ (colo, or at once if \
      made of what the secondary has).
      """)
  var mode: ReplicationMode = .colo

  @Option(help: ArgumentHelp("Longest time between checkpoints.", valueName: "time"))
  var epochMax = Duration(argument: "100ms")!

  @OptionGroup var child: ChildOptions

  @OptionGroup var faults: FaultOptions

  func run() throws {
    try FaultPoints.install(faults.fault)
    try child.apply()
    let key = try PairKey.read(key)
    var settings = try guest.settings()
    if let disk = settings.description.disks.first(where: \.readOnly) {
      throw ValidationError("disk \(disk.path): a protected guest's disks are writable; leave out ,ro")
    }
    let options = PrimarySide.Options(mode: mode, period: epochMax.nanoseconds)
    let tap = try protectedTap(settings.description)
    let target = Protection.Target(address: replicate, heartbeat: heartbeat, key: key)
    let side = try PrimarySide(options, tap: tap)
    var backend: PairBackend?
    if let tap {
      let made = try PairBackend(tap: tap, side: .serving, gate: side.gate, log: InputLog(), traffic: side)
      settings.description.cards[0].host = .custom(made)
      backend = made
    }
    var disks: [MirroredDisk] = []
    for (index, disk) in settings.description.disks.enumerated() {
      let mirrored = MirroredDisk(try DiskFile(path: disk.path, readOnly: false, isRaw: disk.isRaw))
      settings.description.disks[index].opened = mirrored
      disks.append(mirrored)
    }
    settings.description.dirtyTracking = .bitmap
    let description = PairDescription(
      cpus: settings.description.cpus, memory: settings.description.memory, mode: mode, period: options.period,
      mac: settings.description.cards.first?.mac ?? [], identity: try PairDescription.newIdentity(),
      disks: disks.map(\.capacity), processor: try KVMSystem().hostProcessor())
    let session = try RunCommand.session(settings)
    side.offer(session.assembled.memory, session.assembled.pair, backend)
    // A guest that has ended is not to be taken over.
    defer { side.finish() }
    let protection = Protection(
      side: side, machine: session.assembled.machine, backend: backend, disks: disks, target: target,
      description: description.encoded, filters: session.assembled.filters)
    side.askFirst()
    let code = try session.run(pair: side) { try protection.start() }
    throw code
  }
}
