public import ArgumentParser
import CLinux
import Devices
import Glibc
public import MiniVMM

struct RunCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "run", abstract: "Boot a guest.",
    discussion: """
      The console is on this terminal; Ctrl-] ends the machine.

      EXAMPLES:
        minivmm run --kernel vmlinux --initrd initramfs.cpio --cmdline "console=ttyS0 quiet"
        minivmm run --kernel vmlinux --disk root.img --net tap=tap0 --cpus 2 --memory 512M --control /run/vm.sock
        minivmm run --kernel lab.elf --cmdline "service=kv ip=10.0.0.2/24" --net tap=tap0,mac=52:54:00:00:00:01
        minivmm run --config machine.json

      """ + ExitStatus.help)

  @Option(help: ArgumentHelp("Kernel: an ELF vmlinux, any ELF with a PVH note, or a bzImage.", valueName: "file"))
  var kernel: String?

  @Option(help: ArgumentHelp("Initial RAM disk.", valueName: "file"))
  var initrd: String?

  @Option(
    help:
      "Kernel command line; words that announce the virtio devices are added where the kernel does not read ACPI tables."
  )
  var cmdline: String?

  @Option(help: "Boot protocol: auto (PVH where the ELF has a note), linux64 or pvh.")
  var boot: BootProtocol?

  @Flag(
    inversion: .prefixedNo,
    help: "Give the guest ACPI tables. Without, it has the MP table and learns of its devices on the command line.")
  var acpi: Bool?

  @OptionGroup var machine: MachineOptions

  @Option(help: ArgumentHelp("Settings as a JSON object; the command line wins.", valueName: "file"))
  var config: String?

  func run() throws { throw try session(settings()).run() }

  /// What the options and the configuration file ask for.
  func settings() throws -> MachineSettings { try MachineSettings(machine, file()) }

  private func file() throws -> ConfigurationFile { try config.map(ConfigurationFile.read) ?? ConfigurationFile() }

  /// A machine with its kernel loaded.
  func session(_ settings: MachineSettings) throws -> Session {
    let file = try file()
    guard let kernel = kernel ?? file.kernel else {
      throw ValidationError("no kernel; give --kernel FILE, or \"kernel\" in a --config file")
    }
    let protocolName = file.boot ?? "auto"
    guard let bootProtocol = boot ?? BootProtocol(rawValue: protocolName) else {
      throw Failure("configuration: boot '\(protocolName)' is not auto, linux64 or pvh", .badData)
    }
    let session = try Session(settings)
    let kernelFile = try Self.open(kernel, what: "kernel")
    defer { lx_close(kernelFile) }
    let initrdFile = try (initrd ?? file.initrd).map { try Self.open($0, what: "initrd") }
    defer { if let initrdFile { lx_close(initrdFile) } }
    try session.boot(
      BootSource(
        kernel: kernelFile, initrd: initrdFile, commandLine: cmdline ?? file.cmdline ?? "",
        bootProtocol: bootProtocol, devices: session.assembled.windows, acpi: acpi ?? file.acpi ?? true),
      kernelPath: kernel)
    return session
  }

  /// Opens a file for reading; a directory or an unreadable file is an error that says so.
  static func open(_ path: String, what: String) throws -> CInt {
    let descriptor = unsafe lx_open(path, O_RDONLY, 0)
    guard descriptor >= 0 else {
      let reason = unsafe String(cString: lx_strerror(-descriptor))
      let cure = descriptor == -ENOENT ? "correct the path" : "check its permissions"
      throw Failure("cannot open \(what) \(path): \(reason); \(cure)", .noInput)
    }
    guard lx_file_size(descriptor) >= 0 else {
      lx_close(descriptor)
      throw Failure("\(what) \(path) is not a file; correct the path", .noInput)
    }
    return descriptor
  }
}

extension BootProtocol: ExpressibleByArgument {}
