import ArgumentParser
import CLinux
import Devices
import Glibc
import GuestMemory
import MiniVMM
import Pair

struct SecondaryCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "secondary", abstract: "Wait for a primary, follow it, and take over when it is lost.",
    discussion: """
      The machine is the primary's; taps and disks are this host's own. A disk is overwritten with the primary's. Port 0
      is a free one; the first line on standard error has its number.

      EXAMPLES:
        minivmm secondary --listen :7000 --key pair.key --net tap=tap1 --disk copy.img
        minivmm secondary --listen :7000 --key pair.key --net tap=tap1 --control /run/second.sock
        minivmm failover --control /run/second.sock
        minivmm secondary --listen :7000 --key pair.key --replicate third:7000    # protects the guest after a takeover

      """ + ExitStatus.help)

  @Option(help: ArgumentHelp("Where to wait for the primary.", valueName: "host:port"))
  var listen: String

  @Option(help: ArgumentHelp("File with the key that both sides share.", valueName: "file"))
  var key: String

  @Option(
    help: ArgumentHelp(
      "Where signs of life come to, on another network; UDP. As --listen if left out.", valueName: "host:port"))
  var heartbeat: String?

  @Option(help: ArgumentHelp("Where this side's own secondary listens, for after a takeover.", valueName: "host:port"))
  var replicate: String?

  @Option(help: ArgumentHelp("Where that secondary's --heartbeat listens.", valueName: "host:port"))
  var replicateHeartbeat: String?

  @OptionGroup var shrink: ShrinkOptions

  @OptionGroup var machine: MachineOptions

  @OptionGroup var child: ChildOptions

  @OptionGroup var faults: FaultOptions

  func validate() throws {
    guard machine.cpus == nil, machine.memory == nil else {
      throw ValidationError("--cpus and --memory are the primary's; leave them out here")
    }
    guard machine.hugepages != true else { throw ValidationError("\(GuestMemoryError.hugePagesRollBack)") }
  }

  func run() throws {
    try FaultPoints.install(faults.fault)
    try child.apply()
    let key = try PairKey.read(key)
    var settings = try MachineSettings(machine)
    settings.description.hugePages = false
    let user = settings.user.take()
    let main = try MainLoop()
    let listener = unsafe lx_tcp_listen(listen)
    guard listener >= 0 else {
      throw Failure(
        "cannot listen at \(listen): \(unsafe String(cString: lx_strerror(-listener))); choose another address",
        .unavailable)
    }
    var address = listen
    if address.hasSuffix(":0") { address = "\(address.dropLast())\(lx_local_port(listener))" }
    let resources = try FollowerResources(settings, beats: heartbeat ?? address, shrink: shrink.value)
    let next = replicate.map { Protection.Target(address: $0, heartbeat: replicateHeartbeat, key: key) }
    let service = try SecondaryService(
      main, settings, resources, listener: listener, address: address, key: key, next: next)
    let server = try settings.control.map { path in
      try ControlServer(path: path, loop: main.events) { service.answer($0, descriptor: $1) }
    }
    defer { server?.close() }
    // Not at the takeover: by then there are threads whose filters do not allow it.
    if let user { try Session.dropPrivileges(to: user) }
    try service.start()
    main.run()
    throw try service.end()
  }
}
