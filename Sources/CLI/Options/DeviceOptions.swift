import ArgumentParser

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
    let container = try decoder.container(keyedBy: CodingKeys.self)
    path = try container.decode(String.self, forKey: .path)
    readOnly = try container.decodeIfPresent(Bool.self, forKey: .readOnly) ?? false
    format = try container.decodeIfPresent(String.self, forKey: .format)
  }

  private enum CodingKeys: String, CodingKey { case path, readOnly, format }
}

/// `tap=NAME[,mac=…]` or `socket=PATH[,mac=…]`
struct NetOption: ExpressibleByArgument, Codable, Equatable, Sendable {
  var tap: String?
  var socket: String?
  var mac: String?

  init?(argument: String) {
    for part in argument.split(separator: ",", omittingEmptySubsequences: false) {
      let pair = part.split(separator: "=", maxSplits: 1)
      guard pair.count == 2 else { return nil }
      switch pair[0] {
      case "tap": tap = String(pair[1])
      case "socket": socket = String(pair[1])
      case "mac": mac = String(pair[1])
      default: return nil
      }
    }
    guard (tap == nil) != (socket == nil), mac == nil || macBytes != nil else { return nil }
  }

  /// The address given, six bytes, unicast; nil when there is none or it is not one.
  var macBytes: [UInt8]? {
    guard let parts = mac?.split(separator: ":", omittingEmptySubsequences: false), parts.count == 6 else { return nil }
    let bytes = parts.compactMap { $0.count == 2 ? UInt8($0, radix: 16) : nil }
    return bytes.count == 6 && bytes[0] & 1 == 0 ? bytes : nil
  }
}
