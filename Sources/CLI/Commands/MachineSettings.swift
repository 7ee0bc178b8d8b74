import ArgumentParser
import GuestMemory
import MiniVMM

/// The machine that options and configuration file together ask for.
struct MachineSettings {
  var description = MachineDescription()
  var control: String?
  var console: ConsoleOption
  var user: String?

  init(_ options: MachineOptions, _ file: ConfigurationFile, memory: UInt64? = nil) throws {
    description.cpus = options.cpus ?? file.cpus ?? 1
    guard (1...Machine.maximumCPUs).contains(description.cpus) else {
      throw ValidationError("\(description.cpus) CPUs; give 1 to \(Machine.maximumCPUs)")
    }
    var size = options.memory
    if size == nil, let text = file.memory {
      guard let parsed = MemorySize(argument: text) else {
        throw Failure("configuration: memory '\(text)' is not a size such as 128M", .badData)
      }
      size = parsed
    }
    description.memory = memory ?? size?.bytes ?? 128 << 20
    description.hugePages = options.hugepages || file.hugepages ?? false
    guard !description.hugePages || description.memory % GuestMemory.hugePageSize == 0 else {
      throw ValidationError("\(GuestMemoryError.notWholeHugePages(description.memory))")
    }
    description.disks = try (options.disk + (file.disks ?? [])).map { disk in
      guard disk.format == nil || disk.format == "raw" else {
        throw Failure("configuration: disk \(disk.path): the only format is raw; convert the image", .badData)
      }
      return MachineDescription.Disk(path: disk.path, readOnly: disk.readOnly, isRaw: disk.format != nil)
    }
    description.cards = try (options.net + (file.nets ?? [])).map { net in
      guard net.mac == nil || net.macBytes != nil, (net.tap == nil) != (net.socket == nil) else {
        throw Failure("configuration: a network card needs either tap or socket, and a unicast mac if any", .badData)
      }
      let host: MachineDescription.Card.Host = net.tap.map { .tap($0) } ?? .socket(net.socket ?? "")
      return MachineDescription.Card(host: host, mac: net.macBytes)
    }
    let mode = file.seccomp.map { SeccompMode(rawValue: $0) } ?? options.seccomp
    guard let mode else { throw Failure("configuration: seccomp is kill, log, errno or off", .badData) }
    description.seccomp = options.seccomp != .kill ? options.seccomp : mode
    description.seccompExitCode = ExitStatus.seccompViolation.rawValue
    control = options.control ?? file.control
    console = options.console
    user = options.user ?? file.user
  }
}
