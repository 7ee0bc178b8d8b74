import ArgumentParser
import CLinux
import Glibc
import MiniVMM

struct SnapshotCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "snapshot", abstract: "Save a running machine to a file.",
    discussion: """
      The machine pauses while CPU, devices and memory (without zero pages) are written, then goes on. The file appears
      under its name only when it is whole and on stable storage.

      EXAMPLES:
        minivmm snapshot --control /run/vm.sock vm.snapshot
        minivmm snapshot --control /run/vm.sock --stay-paused vm.snapshot
      """)

  @Option(help: "Control socket of the machine (run --control PATH).")
  var control: String

  @Flag(help: "Leave the machine paused.")
  var stayPaused = false

  @Argument(help: "The snapshot file to write.")
  var file: String

  func run() throws {
    let temporary = "\(file).\(getpid()).part"
    let descriptor = unsafe lx_open(temporary, O_RDWR | O_CREAT | O_EXCL, 0o600)
    guard descriptor >= 0 else {
      throw Failure(
        "cannot create \(temporary): \(unsafe String(cString: lx_strerror(-descriptor))); choose a folder you may write to",
        .cannotCreate)
    }
    var isWhole = false
    defer {
      lx_close(descriptor)
      if !isWhole { unsafe lx_unlink(temporary) }
    }
    let reply = try ControlClient.send(
      ControlRequest(command: .snapshot, stayPaused: stayPaused), to: control, descriptor: descriptor)
    guard reply.ok else { throw Failure(reply.error ?? "the machine refused", .protocolError) }
    var result = lx_fsync(descriptor)
    if result == 0 { result = unsafe lx_rename(temporary, file) }
    guard result == 0 else {
      throw Failure(
        "cannot finish \(file): \(unsafe String(cString: lx_strerror(-result))); free space or choose another place",
        .cannotCreate)
    }
    isWhole = true
    let size = (reply.snapshotBytes ?? 0) >> 10
    print(
      "\(file): \(size) KiB, guest paused for \(reply.pauseMilliseconds.map { "\(($0 * 10).rounded() / 10)" } ?? "?") ms"
    )
  }
}

struct RestoreCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "restore", abstract: "Go on with a machine from a snapshot.",
    discussion: """
      Give the same disks, network cards and CPUs, in the same order, as the machine had; RAM size comes from the file.
      Disks must hold what they held when the snapshot was taken: those of another size, or in another order, are refused. Of a
      --config file, kernel, command line and RAM size are left out.

      EXAMPLES:
        minivmm restore vm.snapshot --disk root.img --net tap=tap0
        minivmm restore vm.snapshot --net tap=tap0 --control /run/vm.sock --console none

      """ + ExitStatus.help)

  @Argument(help: "The snapshot file.")
  var file: String

  @OptionGroup var machine: MachineOptions

  func validate() throws {
    guard machine.memory == nil else { throw ValidationError("--memory is the snapshot's; leave it out here") }
  }

  func run() throws {
    let descriptor = try RunCommand.open(file, what: "snapshot")
    defer { lx_close(descriptor) }
    do {
      let header = try SnapshotFile.header(of: descriptor)
      let settings = try MachineSettings(machine, memory: header.memorySize)
      let session = try Session(settings)
      let disks = zip(settings.description.disks.map(\.path), session.assembled.identifyDisks())
      for path in try SavedDisks.check(header.disks, disks.map { ($0, $1) }) {
        tell("warning: disk \(path) has been written to since the snapshot was taken; its guest knows nothing of that")
      }
      let state = try SnapshotFile.read(from: descriptor, into: session.assembled.memory)
      try session.assembled.machine.restore(state)
      throw try session.run()
    } catch let error as SnapshotError {
      throw Failure("snapshot \(file): \(error)", .badData)
    } catch let error as MachineError {
      throw Failure("snapshot \(file): \(error)", .badData)
    }
  }
}
