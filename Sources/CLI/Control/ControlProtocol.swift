import FoundationEssentials
import Pair

/// The control socket's language: one JSON object a line each way, a reply for every request, in order.
struct ControlRequest: Codable, Equatable {
  enum Command: String, Codable, CaseIterable {
    case status, pause, resume, snapshot, stop, checkpoint, failover
  }

  var command: Command
  /// `snapshot`: leave the machine paused afterwards. The open file travels with the line (SCM_RIGHTS).
  var stayPaused: Bool?
}

struct ControlReply: Codable, Equatable {
  var ok: Bool
  /// Cause and cure when `ok` is false.
  var error: String?
  /// `running` or `paused`; of a secondary `waiting` or `following`.
  var state: String?
  var cpus: Int?
  var memoryBytes: UInt64?
  /// How long the guest stood still for this request.
  var pauseMilliseconds: Double?
  /// Size of the snapshot written.
  var snapshotBytes: UInt64?
  var devices: [DeviceStatus]?
  /// The checkpoint that `checkpoint` has taken.
  var epoch: UInt64?
  /// Of a guest that is one of a pair.
  var pair: PairStatus?

  struct DeviceStatus: Codable, Equatable {
    var name: String
    /// `lost` of a card whose tap or peer has gone, and not come back.
    var backend: String?
    /// Mistakes of the guest's driver since the start, by kind.
    var mistakes: [String: UInt64]
    var counters: [String: UInt64]
  }

  static func failure(_ error: String) -> ControlReply { ControlReply(ok: false, error: error) }
}

enum ControlCodec {
  /// Longest line either side accepts.
  static let lineLimit = 64 << 10

  static func line<T: Encodable>(_ value: T) -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    // Both types above hold nothing an encoder can refuse.
    let bytes = (try? encoder.encode(value)).map { Array($0) } ?? Array("{\"ok\":false}".utf8)
    return bytes + [UInt8(ascii: "\n")]
  }

  static func value<T: Decodable>(_ type: T.Type, _ line: ArraySlice<UInt8>) -> T? {
    try? JSONDecoder().decode(type, from: Data(line))
  }
}
