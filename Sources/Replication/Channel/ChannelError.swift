internal import CLinux

/// Why a channel ended.
public enum ChannelError: Error, Equatable, Sendable {
  /// The other side closed it, or the network did.
  case closed
  case system(operation: String, errno: Int32)
  /// No address is known for this "host:port".
  case unresolved(String)
  /// Nothing came within the time a step may take.
  case timedOut
  /// The other side does not have our key, or is no peer of ours.
  case notAuthentic
  case otherVersion(UInt32)
  case messageTooLong(UInt64)
  /// The other side does not read: more waits than may.
  case sendQueueFull
  /// The secondary does not follow this primary: why.
  case refused(String)
  /// The same, from a secondary whose primary serves the same guest.
  case served(String)
  /// Another serves this primary's guest, in this term.
  case replaced(term: UInt64)
}

extension ChannelError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .closed: "the other side closed the connection"
    case .system(let operation, let error):
      "\(operation) on the replication channel: \(unsafe String(cString: lx_strerror(error)))"
    case .unresolved(let address): "cannot resolve \(address); correct it, or see to this host's name service"
    case .timedOut: "the other side does not answer; is it a minivmm that waits for a peer?"
    case .notAuthentic: "the other side does not have the same key; give both the same --key file"
    case .otherVersion(let version):
      "the other side speaks version \(version) of the protocol, this one \(Channel.version); run the same build on both"
    case .messageTooLong(let count): "the other side announced a message of \(count) bytes"
    case .sendQueueFull: "the other side does not read what it is sent"
    case .refused(let why), .served(let why): "the other side refuses: \(why)"
    case .replaced(let term): "another serves this guest, in term \(term)"
    }
  }
}

extension Channel {
  /// How a test spoils what is sent.
  public enum Damage: UInt8, Sendable { case flippedBit = 1, cutShort }
}
