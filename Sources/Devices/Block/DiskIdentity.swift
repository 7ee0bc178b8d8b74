/// What a disk is known by, so that a saved machine gets its own disks back, each in its place.
public struct DiskIdentity: Equatable, Sendable {
  /// Bytes.
  public var capacity: UInt64
  public var isReadOnly: Bool
  /// ``BlockRequestHeader/idLength`` bytes at the most.
  public var serial: [UInt8]
  /// CRC-32C of the first ``beginningSize`` bytes, where partition tables and file systems keep their identifiers; nil when they
  /// can't be read.
  public var beginning: UInt32?

  public static let beginningSize: UInt64 = 128 << 10

  public init(capacity: UInt64, isReadOnly: Bool, serial: [UInt8], beginning: UInt32?) {
    self.capacity = capacity
    self.isReadOnly = isReadOnly
    self.serial = serial
    self.beginning = beginning
  }
}
