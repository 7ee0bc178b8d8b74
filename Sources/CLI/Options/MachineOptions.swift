public import ArgumentParser
import Devices
public import MiniVMM

/// What is booted.
struct BootOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Kernel: an ELF vmlinux, any ELF with a PVH note, or a bzImage.", valueName: "file"))
  var kernel: String?

  @Option(help: ArgumentHelp("Initial RAM disk.", valueName: "file"))
  var initrd: String?

  @Option(
    help:
      "Kernel command line; words that announce the virtio devices are added where the kernel does not read ACPI tables."
  )
  var cmdline: String?

  @Option(help: "Boot protocol: auto (PVH where the ELF has a note), linux64 or pvh. auto if left out.")
  var boot: BootProtocol?

  @Flag(
    inversion: .prefixedNo,
    help: "Give the guest ACPI tables. Without, it has the MP table and learns of its devices on the command line.")
  var acpi: Bool?
}

/// The devices and limits of a machine: what all commands share that make one. None has a default here: what is left out may be in
/// the configuration file (``MachineSettings``).
struct MachineOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "A disk: a raw image or block device; ,ro makes it read-only, ,format=raw takes it as it is whatever it holds. Repeat for more (vda, vdb, …).",
      valueName: "path[,ro][,format=raw]"))
  var disk: [DiskOption] = []

  @Option(
    help: ArgumentHelp(
      """
      A network card on an existing tap, on a tap handed over as an open descriptor, or on a unix stream socket that speaks \
      QEMU's -netdev stream. Repeat for more.
      """, valueName: "tap=NAME|fd=NUMBER|socket=PATH[,mac=…]"))
  var net: [NetOption] = []

  @Option(help: "Virtual CPUs, 1 to 8. 1 if left out.")
  var cpus: Int?

  @Option(help: "Guest RAM, such as 128M or 2G. 128M if left out.")
  var memory: MemorySize?

  @Flag(
    inversion: .prefixedNo,
    help: "Guest RAM on the host's reserved huge pages of 2 MiB (vm.nr_hugepages). Not for a secondary.")
  var hugepages: Bool?

  @Option(help: "Unix socket for `minivmm snapshot`, `minivmm status` and others: one JSON object a line.")
  var control: String?

  @Option(help: "Console: stdio, none, or file=PATH (output only). stdio if left out.")
  var console: ConsoleOption?

  @Option(
    help: "What a thread's forbidden system call does: kill, log, errno, or off for no filters. kill if left out.")
  var seccomp: SeccompMode?

  @Option(help: "When started as root: run as this user (name or number) once everything is open.")
  var user: String?

  @Option(help: ArgumentHelp("Settings as a JSON object; the command line wins.", valueName: "file"))
  var config: String?
}

enum ConsoleOption: ExpressibleByArgument, Equatable, Sendable {
  case stdio
  case none
  case file(String)

  init?(argument: String) {
    switch argument {
    case "stdio": self = .stdio
    case "none": self = .none
    default:
      guard argument.hasPrefix("file="), argument.count > 5 else { return nil }
      self = .file(String(argument.dropFirst(5)))
    }
  }
}

extension SeccompMode: ExpressibleByArgument {}

extension BootProtocol: ExpressibleByArgument {}
