extension Channel {
  /// What waits to be sent.
  struct Queue {
    /// Small and urgent first: heartbeats, input, acknowledgements do not wait behind a checkpoint's pages. Each entry is a
    /// record to be: room for its length, then messages with theirs.
    var urgent: [[UInt8]] = []
    /// How many urgent messages there have been, by the end of each of these records and in all.
    var urgentEnds: [UInt64] = []
    var urgentCount: UInt64 = 0
    var bulk: [[UInt8]] = []
    var bytes = 0
    var isClosed = false
    var takesBulk = true

    /// A message in two pieces.
    mutating func append(_ head: [UInt8], _ rest: UnsafeRawBufferPointer, urgent isUrgent: Bool) {
      let count = head.count + rest.count
      bytes += count
      if isUrgent { urgentCount += 1 }
      if isUrgent, let last = urgent.indices.last, urgent[last].count + count <= Channel.recordSize {
        urgentEnds[last] = urgentCount
        return unsafe Self.append(head, rest, to: &urgent[last])
      }
      var record: [UInt8] = []
      record.reserveCapacity(count + 8 + Channel.macSize)
      record.append(contentsOf: [0, 0, 0, 0])
      unsafe Self.append(head, rest, to: &record)
      guard isUrgent else { return bulk.append(record) }
      urgent.append(record)
      urgentEnds.append(urgentCount)
    }

    private static func append(_ head: [UInt8], _ rest: UnsafeRawBufferPointer, to record: inout [UInt8]) {
      record.append(contentsOf: Channel.bytes(UInt32(head.count + rest.count)))
      record.append(contentsOf: head)
      unsafe record.append(contentsOf: rest)
    }

    /// A record, and how many urgent messages have been taken with it.
    mutating func take(bulk takesBulk: Bool) -> (record: [UInt8], urgent: UInt64?)? {
      if !urgent.isEmpty { return (taken(urgent.removeFirst()), urgentEnds.removeFirst()) }
      return takesBulk && !bulk.isEmpty ? (taken(bulk.removeFirst()), nil) : nil
    }

    private mutating func taken(_ record: [UInt8]) -> [UInt8] {
      bytes -= min(bytes, record.count)
      return record
    }
  }
}
