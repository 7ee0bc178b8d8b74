import ArgumentParser

/// `PATH[,ro]`
struct DiskOption: ExpressibleByArgument, Codable, Equatable, Sendable {
  var path: String
  var readOnly: Bool

  init?(argument: String) {
    path = argument
    readOnly = false
    if argument.hasSuffix(",ro") {
      path = String(argument.dropLast(3))
      readOnly = true
    }
    guard !path.isEmpty else { return nil }
  }

  init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    path = try container.decode(String.self, forKey: .path)
    readOnly = try container.decodeIfPresent(Bool.self, forKey: .readOnly) ?? false
  }

  private enum CodingKeys: String, CodingKey { case path, readOnly }
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
