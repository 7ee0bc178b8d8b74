public import ArgumentParser
import Devices
import FoundationEssentials
public import MiniVMM

/// The devices and limits of a machine: what `run` and `restore` share.
struct MachineOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "A disk: a raw image or block device; ,ro makes it read-only, ,format=raw takes it as it is whatever it holds. Repeat for more (vda, vdb, …).",
      valueName: "path[,ro][,format=raw]"))
  var disk: [DiskOption] = []

  @Option(
    help: ArgumentHelp(
      "A network card on an existing tap, or on a unix stream socket that speaks QEMU's -netdev stream. Repeat for more.",
      valueName: "tap=NAME|socket=PATH[,mac=…]"))
  var net: [NetOption] = []

  @Option(help: "Virtual CPUs, 1 to 8.")
  var cpus: Int?

  @Option(help: "Guest RAM, such as 128M or 2G.")
  var memory: MemorySize?

  @Flag(help: "Guest RAM on the host's reserved huge pages of 2 MiB (vm.nr_hugepages). Not for a secondary.")
  var hugepages = false

  @Option(help: "Unix socket for `minivmm snapshot`, `minivmm status` and others: one JSON object a line.")
  var control: String?

  @Option(help: "Console: stdio, none, or file=PATH (output only).")
  var console: ConsoleOption = .stdio

  @Option(help: "What a thread's forbidden system call does: kill, log, errno, or off for no filters.")
  var seccomp: SeccompMode = .kill

  @Option(help: "When started as root: run as this user (name or number) once everything is open.")
  var user: String?
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

  var defaultValueDescription: String {
    switch self {
    case .stdio: "stdio"
    case .none: "none"
    case .file(let path): "file=\(path)"
    }
  }
}

extension SeccompMode: ExpressibleByArgument {}

/// `--config FILE`: the same settings as a JSON object. What the command line says wins; disks and cards add up.
struct ConfigurationFile: Codable, Equatable {
  var kernel: String?
  var initrd: String?
  var cmdline: String?
  var boot: String?
  var acpi: Bool?
  var cpus: Int?
  var memory: String?
  var hugepages: Bool?
  var disks: [DiskOption]?
  var nets: [NetOption]?
  var control: String?
  var seccomp: String?
  var user: String?

  private enum CodingKeys: String, CodingKey, CaseIterable {
    case kernel, initrd, cmdline, boot, acpi, cpus, memory, hugepages, disks, nets, control, seccomp, user
  }

  static func read(_ path: String) throws -> ConfigurationFile {
    guard let data = try? Data(contentsOf: URL(filePath: path)) else {
      throw Failure("cannot read configuration \(path); check the path and its permissions", .noInput)
    }
    do {
      if let keys = try JSONDecoder().decode([String: AnyKey].self, from: data).keys.first(where: {
        CodingKeys(rawValue: $0) == nil
      }) {
        let known = CodingKeys.allCases.map(\.rawValue).joined(separator: ", ")
        throw Failure("configuration \(path) has an unknown key '\(keys)'; known are \(known)", .badData)
      }
      return try JSONDecoder().decode(ConfigurationFile.self, from: data)
    } catch let error as DecodingError {
      throw Failure("configuration \(path) is not valid: \(describe(error))", .badData)
    }
  }

  private struct AnyKey: Codable {
    init(from decoder: any Decoder) throws {}
  }

  private static func describe(_ error: DecodingError) -> String {
    switch error {
    case .typeMismatch(_, let context), .valueNotFound(_, let context), .keyNotFound(_, let context),
      .dataCorrupted(let context):
      let place = context.codingPath.map(\.stringValue).joined(separator: ".")
      return place.isEmpty ? "it is not a JSON object" : "key '\(place)' has the wrong type"
    @unknown default: return "it is not JSON"
    }
  }
}
