/// What the secondary was told of the guest's disks and has not loaded yet: it keeps that in memory, and not without end
/// (``FollowerDisk/limit``). A value.
struct DiskBacklog {
  /// Bytes of one epoch after which a checkpoint is taken, and bytes in all beyond which the guest's writes wait: a quarter
  /// and half of what a secondary keeps of a disk. What is in flight then comes on top.
  static let epochLimit = 64 << 20
  static let limit = 128 << 20

  private var epochs: [(epoch: UInt64, bytes: Int)] = []
  private(set) var bytes = 0

  /// A change of so many bytes in `epoch`, which is the last one's or later.
  /// - Returns: whether that is one too many for the epoch; once.
  mutating func told(_ count: Int, epoch: UInt64) -> Bool {
    bytes += count
    if epochs.last?.epoch != epoch { epochs.append((epoch, 0)) }
    let before = epochs[epochs.count - 1].bytes
    epochs[epochs.count - 1].bytes += count
    return before <= Self.epochLimit && before + count > Self.epochLimit
  }

  /// The secondary has loaded checkpoint `epoch`.
  mutating func loaded(_ epoch: UInt64) {
    while let first = epochs.first, first.epoch <= epoch {
      bytes -= first.bytes
      epochs.removeFirst()
    }
  }
}
