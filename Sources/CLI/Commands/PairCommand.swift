import ArgumentParser
import CLinux
import Devices
import Glibc
import MiniVMM
import Pair
import Replication

struct PairCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pair", abstract: "Boot a guest with both of its sides on this host: to try things out.",
    discussion: """
      Everything of `run` goes to the primary. The console is that of the side that serves; standard error says which side
      speaks. Kill either side's process and the other goes on. Ends with the last guest, and with its exit code.

      EXAMPLES:
        minivmm pair --kernel vmlinux --net tap=tap0 --secondary-net tap=tap1
        minivmm pair --kernel vmlinux --disk root.img --secondary-disk copy.img --mode remus --epoch-max 50ms
        minivmm pair --kernel lab.elf --control /run/first.sock --secondary-control /run/second.sock

      """ + ExitStatus.help)

  @OptionGroup var guest: RunCommand

  @Option(help: ArgumentHelp("The secondary's network card: another tap on the same network.", valueName: "tap=NAME"))
  var secondaryNet: NetOption?

  @Option(
    help: ArgumentHelp(
      "The secondary's copy of each disk, in their order; made when it is missing. Repeat for more.",
      valueName: "file[,format=raw]"))
  var secondaryDisk: [DiskOption] = []

  @Option(help: ArgumentHelp("Control socket of the secondary; --control is the primary's.", valueName: "path"))
  var secondaryControl: String?

  @OptionGroup var shrink: ShrinkOptions

  @Option(
    help: """
      What may leave when: none, remus (after the checkpoint), colo (when both say the same) or colo++ (colo, or at once if \
      made of what the secondary has).
      """)
  var mode: ReplicationMode = .colo

  @Option(help: ArgumentHelp("Longest time between checkpoints.", valueName: "time"))
  var epochMax = Duration(argument: "100ms")!

  func run() throws {
    let settings = try guest.settings()
    guard settings.description.cards.count == (secondaryNet == nil ? 0 : 1) else {
      throw ValidationError("give either one --net and one --secondary-net, or neither")
    }
    // Two processes would have the descriptor; and the secondary has its primary's address.
    if case .tapDescriptor = settings.description.cards.first?.host {
      throw ValidationError("`pair` takes taps by name; fd= is for `run`, `primary`, `secondary` and `restore`")
    }
    guard secondaryNet == nil || (secondaryNet?.tap != nil && secondaryNet?.mac == nil) else {
      throw ValidationError("--secondary-net takes tap=NAME and nothing else")
    }
    guard settings.description.disks.count == secondaryDisk.count else {
      throw ValidationError(
        "\(settings.description.disks.count) disks and \(secondaryDisk.count) --secondary-disk; give as many")
    }
    for (disk, copy) in zip(settings.description.disks, secondaryDisk) { try Self.make(copy.path, like: disk.path) }
    // The children find it as descriptor 3; it has no name that could be left behind.
    let key = try Self.key()
    defer { lx_close(key) }
    let main = try MainLoop()
    let pair = try PairProcesses(
      main, key: key, secondary: secondaryArguments(settings), primary: Self.primaryArguments())
    // What the children do to the terminal outlives one that is killed.
    if settings.console == .stdio, Terminal.isThere { _ = try Terminal(main, setsMode: true) }
    throw try pair.run()
  }

  private func secondaryArguments(_ settings: MachineSettings) -> [String] {
    var arguments = ["secondary", "--listen", "127.0.0.1:0", "--key", PairProcesses.key]
    if let tap = secondaryNet?.tap { arguments += ["--net", "tap=\(tap)"] }
    // A copy of what its guest has written to a raw disk is raw as well.
    for (disk, copy) in zip(settings.description.disks, secondaryDisk) {
      let isRaw = disk.isRaw || copy.format != nil
      arguments += ["--disk", copy.path + (copy.readOnly ? ",ro" : "") + (isRaw ? ",format=raw" : "")]
    }
    if let secondaryControl { arguments += ["--control", secondaryControl] }
    switch settings.console {
    case .stdio: break
    case .none: arguments += ["--console", "none"]
    // Both write from the start of a file.
    case .file(let path): arguments += ["--console", "file=\(path).secondary"]
    }
    arguments += ["--shrink", shrink.shrink.rawValue, "--shrink-to", "\(shrink.shrinkTo)"]
    arguments += ["--seccomp", settings.description.seccomp.rawValue]
    if let user = settings.user { arguments += ["--user", user] }
    return arguments
  }

  /// Our own arguments but for those that are the secondary's.
  private static func primaryArguments() -> [String] {
    let own = ["--secondary-net", "--secondary-disk", "--secondary-control", "--shrink", "--shrink-to"]
    var arguments = ["primary", "--key", PairProcesses.key]
    var skips = false
    for argument in CommandLine.arguments.dropFirst(2) {
      if skips {
        skips = false
      } else if own.contains(argument) {
        skips = true
      } else if !own.contains(where: { argument.hasPrefix($0 + "=") }) {
        arguments.append(argument)
      }
    }
    return arguments
  }

  /// A sparse file of a disk's size, where there is none yet.
  private static func make(_ path: String, like disk: String) throws {
    let original = try RunCommand.open(disk, what: "disk")
    defer { lx_close(original) }
    let file = unsafe lx_open(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
    if file == -EEXIST { return }
    guard file >= 0 else {
      throw Failure(
        "cannot create disk \(path): \(unsafe String(cString: lx_strerror(-file))); choose another path", .cannotCreate)
    }
    defer { lx_close(file) }
    let result = lx_ftruncate(file, lx_file_size(original))
    guard result >= 0 else {
      throw Failure("cannot size disk \(path): \(unsafe String(cString: lx_strerror(-result)))", .cannotCreate)
    }
  }

  /// An open file with 32 random bytes, for its owner alone.
  private static func key() throws -> CInt {
    let file = unsafe lx_memfd_plain("pair-key")
    guard file >= 0 else { throw HostError(operation: "memfd_create", errno: -file) }
    var bytes = [UInt8](repeating: 0, count: 32)
    let filled = unsafe bytes.withUnsafeMutableBytes { buffer in
      unsafe lx_getrandom(buffer.baseAddress, buffer.count) >= 0
        && lx_pwrite(file, buffer.baseAddress, buffer.count, 0) == buffer.count
    }
    guard filled, lx_set_file_mode(file, 0o600) == 0 else { throw HostError(operation: "making a key", errno: EIO) }
    return file
  }
}
