public import StateCodec

/// The mappings as part of a checkpoint: a survivor's guest speaks in numbers of its own on the connections that it has
/// inherited, and so will the guest of its next secondary.
extension SequenceMapper {
  /// The connections whose numbers on the wire are not the guest's.
  public var encoded: [UInt8] {
    var out = StateWriter()
    let mapped = connections.filter { $0.value.offset != nil && !$0.value.isIdentity }
    out.put(UInt32(mapped.count))
    for (key, connection) in mapped {
      key.put(into: &out)
      for start in [connection.primary, connection.secondary] {
        out.put(start?.sequence ?? 0)
        out.put(start?.timestamp != nil)
        out.put(start?.timestamp ?? 0)
      }
      out.put(connection.finEnd != nil)
      out.put(connection.finEnd ?? 0)
      out.put(connection.isFinAcknowledged)
      out.put(connection.isPeerFin)
    }
    return out.bytes
  }

  /// The secondary goes on from the primary's state at the end of `epoch`: its numbers are the primary's guest's again,
  /// which are the wire's but for the `mappings` that the primary has (``encoded``; empty for none).
  ///
  /// What the primary has begun since is kept: the secondary has yet to begin it.
  public mutating func checkpointLoaded(epoch: UInt64, mappings: [UInt8] = []) throws(StateError) {
    var inherited = try decode(mappings, epoch: epoch)
    for (key, connection) in connections where connection.epoch > epoch {
      guard let primary = connection.primary else { continue }
      inherited[key] = Connection(primary: primary, epoch: connection.epoch)
    }
    connections = inherited
  }

  /// Refuses mappings that ``checkpointLoaded(epoch:mappings:)`` would refuse.
  public func check(_ mappings: [UInt8]) throws(StateError) { _ = try decode(mappings, epoch: 0) }

  private func decode(_ mappings: [UInt8], epoch: UInt64) throws(StateError) -> [FlowKey: Connection] {
    guard !mappings.isEmpty else { return [:] }
    var decoded: [FlowKey: Connection] = [:]
    var reader = StateReader(mappings)
    let count = Int(try reader.get(UInt32.self))
    guard count <= capacity else { throw .invalid("\(count) mapped connections") }
    for _ in 0..<count {
      let (key, connection) = try Self.decode(&reader, epoch: epoch)
      decoded[key] = connection
    }
    guard reader.remaining == 0 else { throw .invalid("bytes behind the mapped connections") }
    return decoded
  }

  private static func decode(
    _ reader: inout StateReader, epoch: UInt64
  ) throws(StateError) -> (FlowKey, Connection) {
    let key = try FlowKey(from: &reader)
    var connection = Connection(epoch: epoch)
    connection.primary = try start(&reader)
    connection.secondary = try start(&reader)
    let hasEnd = try reader.get(Bool.self)
    let end = try reader.get(UInt32.self)
    connection.finEnd = hasEnd ? end : nil
    connection.isFinAcknowledged = try reader.get(Bool.self)
    connection.isPeerFin = try reader.get(Bool.self)
    return (key, connection)
  }

  private static func start(_ reader: inout StateReader) throws(StateError) -> Start {
    let sequence = try reader.get(UInt32.self)
    let hasTimestamp = try reader.get(Bool.self)
    let timestamp = try reader.get(UInt32.self)
    return Start(sequence: sequence, timestamp: hasTimestamp ? timestamp : nil)
  }
}
