import CLinux
import FoundationEssentials
import Glibc

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
  var console: String?
  var seccomp: String?
  var user: String?

  private enum CodingKeys: String, CodingKey, CaseIterable {
    case kernel, initrd, cmdline, boot, acpi, cpus, memory, hugepages, disks, nets, control, console, seccomp, user
  }

  init() {}

  init(from decoder: any Decoder) throws {
    let container = try decoder.knownKeys(CodingKeys.self)
    kernel = try container.decodeIfPresent(String.self, forKey: .kernel)
    initrd = try container.decodeIfPresent(String.self, forKey: .initrd)
    cmdline = try container.decodeIfPresent(String.self, forKey: .cmdline)
    boot = try container.decodeIfPresent(String.self, forKey: .boot)
    acpi = try container.decodeIfPresent(Bool.self, forKey: .acpi)
    cpus = try container.decodeIfPresent(Int.self, forKey: .cpus)
    memory = try container.decodeIfPresent(String.self, forKey: .memory)
    hugepages = try container.decodeIfPresent(Bool.self, forKey: .hugepages)
    disks = try container.decodeIfPresent([DiskOption].self, forKey: .disks)
    nets = try container.decodeIfPresent([NetOption].self, forKey: .nets)
    control = try container.decodeIfPresent(String.self, forKey: .control)
    console = try container.decodeIfPresent(String.self, forKey: .console)
    seccomp = try container.decodeIfPresent(String.self, forKey: .seccomp)
    user = try container.decodeIfPresent(String.self, forKey: .user)
  }

  private static let limit = 1 << 20

  static func read(_ path: String) throws -> ConfigurationFile {
    guard let bytes = contents(path) else {
      throw Failure("cannot read configuration \(path); check the path and its permissions", .noInput)
    }
    guard bytes.count <= limit else { throw Failure("configuration \(path) is longer than 1 MiB", .badData) }
    let data = Data(bytes)
    do { return try JSONDecoder().decode(ConfigurationFile.self, from: data) } catch let error as DecodingError {
      throw Failure("configuration \(path) is not valid: \(describe(error))", .badData)
    }
  }

  /// The file's beginning, one byte more than may be at the most. Nil when it cannot be read.
  private static func contents(_ path: String) -> [UInt8]? {
    let descriptor = unsafe lx_open(path, O_RDONLY, 0)
    guard descriptor >= 0 else { return nil }
    defer { lx_close(descriptor) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    while bytes.count <= limit {
      let got = unsafe buffer.withUnsafeMutableBytes { unsafe lx_read(descriptor, $0.baseAddress, $0.count) }
      guard got >= 0 else { return nil }
      guard got > 0 else { break }
      bytes += buffer[..<got]
    }
    return bytes
  }

  private static func describe(_ error: DecodingError) -> String {
    switch error {
    case .dataCorrupted(let context):
      // Ours have no error below them: they name the key and say what is wrong.
      return context.underlyingError == nil && !context.debugDescription.isEmpty
        ? context.debugDescription : "it is not JSON"
    case .typeMismatch(_, let context), .valueNotFound(_, let context):
      let place = place(context.codingPath)
      return place.isEmpty ? "it is not a JSON object" : "key '\(place)' has the wrong type"
    case .keyNotFound(let key, let context): return "key '\(place(context.codingPath + [key]))' is missing"
    @unknown default: return "it is not JSON"
    }
  }

  private static func place(_ path: [any CodingKey]) -> String { path.map(\.stringValue).joined(separator: ".") }
}

extension Decoder {
  /// The object's values, if it has no keys but these: a misspelt one must not be left out in silence.
  func knownKeys<Key: CodingKey & CaseIterable>(_ type: Key.Type) throws -> KeyedDecodingContainer<Key> {
    if let unknown = try container(keyedBy: AnyKey.self).allKeys.first(where: {
      Key(stringValue: $0.stringValue) == nil
    }) {
      let known = Key.allCases.map(\.stringValue).joined(separator: ", ")
      throw DecodingError.dataCorrupted(
        DecodingError.Context(
          codingPath: codingPath, debugDescription: "there is no key '\(unknown.stringValue)'; known are \(known)"))
    }
    return try container(keyedBy: Key.self)
  }
}

/// Any key of an object.
private struct AnyKey: CodingKey {
  let stringValue: String
  var intValue: Int? { nil }

  init?(stringValue: String) { self.stringValue = stringValue }
  init?(intValue: Int) { nil }
}
