internal import GuestMemory
internal import MiniVMM
internal import Replication
internal import Synchronization

/// What goes to the secondary in bulk.
extension PrimarySide {
  func send(_ pages: PageSet, _ machine: Machine, _ channel: Channel, _ stage: PageStage) throws {
    stage.removeAll()
    try stage.add(pages, of: machine.memory)
    try send(stage, 0, nil, channel)
    FaultPoints.pass(.firstCopy)
  }

  /// - Parameter sent: what the secondary knows of the pages; nil while they are copied for the first time.
  func send(_ stage: PageStage, _ epoch: UInt64, _ sent: SentPages?, _ channel: Channel) throws(ChannelError) {
    var run: [UInt8] = []
    for (index, page) in stage.pages.enumerated() {
      let contents = unsafe UnsafeRawBufferPointer(stage.contents(index))
      unsafe PageRun.append(UInt64(page), contents, base: sent?.last(page), to: &run)
      unsafe sent?.told(page, contents)
      if (index + 1) % 64 == 0 || index + 1 == stage.pages.count {
        try channel.sendBulk(.pages(epoch: epoch, run: run))
        run.removeAll(keepingCapacity: true)
      }
      if epoch > 0, index == stage.pages.count / 2 { FaultPoints.pass(.pagesSent) }
    }
  }

  func send(
    _ stage: PageStage, _ epoch: UInt64, _ saved: [UInt8], _ given: [UInt64],
    _ network: (mappings: [UInt8], addresses: [UInt8]), _ search: EarlySearch, _ sent: SentPages, _ channel: Channel
  ) throws(ChannelError) {
    try send(stage, epoch, sent, channel)
    let held = gate.held(frames: RecentOutput.frames, bytes: RecentOutput.bytes)
    try channel.sendBulk(
      .checkpoint(
        epoch: epoch, pages: UInt64(stage.pages.count), given: given, mappings: network.mappings,
        addresses: network.addresses, held: held, wait: meter.wait(gate.counters), search: search, state: saved)
    )
    FaultPoints.pass(.checkpointSent)
  }

  /// Sends RAM while the guest runs, again and again until little is left to do at the first pause, and the disks.
  func firstCopy(_ machine: Machine, _ disks: [MirroredDisk], _ channel: Channel, _ stage: PageStage) throws {
    meter.beganCopy(of: disks.reduce(machine.memory.size) { $0 + $1.capacity })
    for (index, disk) in disks.enumerated() {
      disk.mirror(
        to: { [weak self] in self?.tell(index, $0) }, waitingWhile: { [weak self] in self?.isBehind ?? false })
      var position: UInt64? = 0
      while let at = position {
        channel.waitForRoom(below: 8 << 20)
        position = try disk.tellContents(from: at, limit: 1 << 20)
        let next = position ?? disk.capacity
        meter.copied(next - at, of: "disk \(index)", at: next, whole: disk.capacity)
      }
    }
    // Everything once, in pieces; what is changed meanwhile is dirty afterwards.
    var dirty = PageSet(count: machine.memory.pageCount)
    try machine.harvestDirtyPages(into: &dirty)
    let all = machine.memory.pageCount
    for start in stride(from: 0, to: all, by: 4096) {
      dirty.removeAll()
      let end = min(start + 4096, all)
      for page in start..<end { dirty.insert(page) }
      try send(dirty, machine, channel, stage)
      meter.copied(UInt64(end - start) << 12, of: "RAM", at: UInt64(end), whole: UInt64(all))
    }
    for _ in 0..<8 {
      dirty.removeAll()
      try machine.harvestDirtyPages(into: &dirty)
      try send(dirty, machine, channel, stage)
      if stage.pages.count < 512 { return }
    }
  }

  private func tell(_ index: Int, _ change: DiskChange) {
    let (channel, epoch, isMuch) = state.withLock { state in
      let epoch = state.isCopying ? 0 : state.epoch + 1
      return (state.channel, epoch, epoch > 0 && state.backlog.told(change.weight, epoch: epoch))
    }
    guard let channel else { return }
    if isMuch { requestCheckpoint(.queueFull) }
    let message: Message =
      switch change.kind {
      case .write(let bytes):
        .disk(index: UInt8(index), epoch: epoch, position: change.position, count: 0, zero: 0, bytes: bytes)
      case .discard(let count):
        .disk(index: UInt8(index), epoch: epoch, position: change.position, count: count, zero: 0, bytes: [])
      case .zero(let count, let unmap):
        .disk(
          index: UInt8(index), epoch: epoch, position: change.position, count: count, zero: unmap ? 2 : 1, bytes: [])
      }
    do throws(ChannelError) { try channel.post(message) } catch { channel.abandon() }
    channel.wakeSender()
    if epoch > 0 { FaultPoints.pass(.diskTold) }
  }

  /// Whether the guest's disk writes are to wait: the secondary has much to load, or there is much that was not even sent.
  private var isBehind: Bool {
    let (bytes, channel) = state.withLock { ($0.backlog.bytes, $0.channel) }
    return bytes > DiskBacklog.limit || (channel?.queuedBytes ?? 0) > DiskBacklog.limit
  }
}
