import ArgumentParser
import Devices
import GuestMemory
import MiniVMM

/// The machine that options and configuration file together ask for: the one place where they are merged, and where what both
/// leave out gets its default.
struct MachineSettings {
  struct Boot {
    var kernel: String?
    var initrd: String?
    var commandLine: String
    var bootProtocol: BootProtocol
    var acpi: Bool
  }

  var description = MachineDescription()
  var boot: Boot
  var control: String?
  var console: ConsoleOption
  var user: String?

  /// - Parameters:
  ///   - boot: nil for a command that boots nothing: what the file says of that is checked, and left.
  ///   - memory: of a machine whose size is known already.
  init(_ options: MachineOptions, boot: BootOptions? = nil, memory: UInt64? = nil) throws {
    let file = try options.config.map(ConfigurationFile.read) ?? ConfigurationFile()

    self.boot = Boot(
      kernel: boot?.kernel ?? file.kernel, initrd: boot?.initrd ?? file.initrd,
      commandLine: boot?.cmdline ?? file.cmdline ?? "",
      bootProtocol: try boot?.boot ?? Self.parse(file.boot, "boot", "auto, linux64 or pvh") ?? .auto,
      acpi: boot?.acpi ?? file.acpi ?? true)

    description.cpus = options.cpus ?? file.cpus ?? 1
    guard (1...Machine.maximumCPUs).contains(description.cpus) else {
      throw ValidationError("\(description.cpus) CPUs; give 1 to \(Machine.maximumCPUs)")
    }
    let size: MemorySize? = try options.memory ?? Self.parse(file.memory, "memory", "a size such as 128M")
    description.memory = memory ?? size?.bytes ?? 128 << 20
    description.hugePages = options.hugepages ?? file.hugepages ?? false
    guard !description.hugePages || description.memory % GuestMemory.hugePageSize == 0 else {
      throw ValidationError("\(GuestMemoryError.notWholeHugePages(description.memory))")
    }
    description.disks = try (options.disk + (file.disks ?? [])).map { disk in
      guard disk.format == nil || disk.format == "raw" else {
        throw Failure("configuration: disk \(disk.path): the only format is raw; convert the image", .badData)
      }
      return MachineDescription.Disk(path: disk.path, readOnly: disk.readOnly, isRaw: disk.format != nil)
    }
    description.cards = try (options.net + (file.nets ?? [])).enumerated().map { index, net in
      // Before anything is opened: a number that was not handed over would soon be a descriptor of our own.
      if let fd = net.fd, DefaultAddress.tapName(fd) == nil { throw NetBackendError.notATapDescriptor(fd) }
      return MachineDescription.Card(host: net.host, mac: net.macBytes ?? DefaultAddress.mac(of: net.host, index))
    }

    description.seccomp =
      try options.seccomp ?? Self.parse(file.seccomp, "seccomp", "kill, log, errno or off") ?? .kill
    description.seccompExitCode = ExitStatus.seccompViolation.rawValue
    control = options.control ?? file.control
    console = try options.console ?? Self.parse(file.console, "console", "stdio, none or file=PATH") ?? .stdio
    user = options.user ?? file.user
  }

  /// A value of the configuration file, read as the option of that name is.
  private static func parse<Value: ExpressibleByArgument>(_ text: String?, _ key: String, _ expected: String) throws
    -> Value?
  {
    guard let text else { return nil }
    guard let value = Value(argument: text) else {
      throw Failure("configuration: \(key) '\(text)' is not \(expected)", .badData)
    }
    return value
  }
}
