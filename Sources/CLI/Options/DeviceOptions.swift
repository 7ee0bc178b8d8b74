import ArgumentParser
import MiniVMM

/// `PATH[,ro][,format=raw]`
struct DiskOption: ExpressibleByArgument, Codable, Equatable, Sendable {
  var path: String
  var readOnly: Bool
  /// `raw` takes the file for a raw image whatever it holds.
  var format: String?

  init?(argument: String) {
    readOnly = false
    var rest = argument[...]
    // Other commas belong to the path.
    while let comma = rest.lastIndex(of: ",") {
      let word = rest[rest.index(after: comma)...]
      if word == "ro" {
        readOnly = true
      } else if word.hasPrefix("format=") {
        format = String(word.dropFirst(7))
      } else {
        break
      }
      rest = rest[..<comma]
    }
    path = String(rest)
    guard !path.isEmpty, format == nil || format == "raw" else { return nil }
  }

  init(from decoder: any Decoder) throws {
    let container = try decoder.knownKeys(CodingKeys.self)
    path = try container.decode(String.self, forKey: .path)
    readOnly = try container.decodeIfPresent(Bool.self, forKey: .readOnly) ?? false
    format = try container.decodeIfPresent(String.self, forKey: .format)
  }

  private enum CodingKeys: String, CodingKey, CaseIterable { case path, readOnly, format }
}

/// `tap=NAME[,mac=…]`, `fd=NUMBER[,mac=…]` or `socket=PATH[,mac=…]`
struct NetOption: ExpressibleByArgument, Codable, Equatable, Sendable {
  var tap: String?
  /// A descriptor that is attached to a tap already.
  var fd: Int32?
  var socket: String?
  var mac: String?

  init?(argument: String) {
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let pair = part.split(separator: "=", maxSplits: 1)
      guard pair.count == 2 else { return nil }
      switch pair[0] {
      case "tap": tap = String(pair[1])
      case "fd":
        guard let number = Int32(pair[1]) else { return nil }
        fd = number
      case "socket": socket = String(pair[1])
      case "mac": mac = String(pair[1])
      default: return nil
      }
    }
    guard isValid else { return nil }
  }

  init(from decoder: any Decoder) throws {
    let container = try decoder.knownKeys(CodingKeys.self)
    tap = try container.decodeIfPresent(String.self, forKey: .tap)
    fd = try container.decodeIfPresent(Int32.self, forKey: .fd)
    socket = try container.decodeIfPresent(String.self, forKey: .socket)
    mac = try container.decodeIfPresent(String.self, forKey: .mac)
    guard isValid else {
      throw DecodingError.dataCorrupted(
        DecodingError.Context(
          codingPath: decoder.codingPath,
          debugDescription: "a network card needs one of tap, fd (3 or more) and socket, and a unicast mac if any"))
    }
  }

  private enum CodingKeys: String, CodingKey, CaseIterable { case tap, fd, socket, mac }

  private var isValid: Bool {
    let hosts = [tap != nil, fd != nil, socket != nil].count { $0 }
    return hosts == 1 && fd ?? 3 >= 3 && (mac == nil || macBytes != nil)
  }

  var host: MachineDescription.Card.Host {
    if let tap { return .tap(tap) }
    if let fd { return .tapDescriptor(fd) }
    return .socket(socket ?? "")
  }

  /// The address given, six bytes, unicast; nil when there is none or it is not one.
  var macBytes: [UInt8]? {
    guard let parts = mac?.split(separator: ":", omittingEmptySubsequences: false), parts.count == 6 else { return nil }
    let bytes = parts.compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
    return bytes.count == 6 && bytes[0] & 1 == 0 ? bytes : nil
  }
}
