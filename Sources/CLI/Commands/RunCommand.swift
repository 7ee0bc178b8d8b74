import ArgumentParser
import CLinux
import Devices
import Glibc
import MiniVMM

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

  @OptionGroup var boot: BootOptions

  @OptionGroup var machine: MachineOptions

  func run() throws { throw try Self.session(settings()).run() }

  /// What the options and the configuration file ask for.
  func settings() throws -> MachineSettings { try MachineSettings(machine, boot: boot) }

  /// A machine with its kernel loaded.
  static func session(_ settings: MachineSettings) throws -> Session {
    let boot = settings.boot
    guard let kernel = boot.kernel else {
      throw ValidationError("no kernel; give --kernel FILE, or \"kernel\" in a --config file")
    }
    let session = try Session(settings)
    let kernelFile = try open(kernel, what: "kernel")
    defer { lx_close(kernelFile) }
    let initrdFile = try boot.initrd.map { try open($0, what: "initrd") }
    defer { if let initrdFile { lx_close(initrdFile) } }
    try session.boot(
      BootSource(
        kernel: kernelFile, initrd: initrdFile, commandLine: boot.commandLine,
        bootProtocol: boot.bootProtocol, devices: session.assembled.windows, acpi: boot.acpi),
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
