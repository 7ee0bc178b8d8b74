internal import GuestMemory
internal import MiniVMM
internal import Replication

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
    _ network: (mappings: [UInt8], addresses: [UInt8]), _ sent: SentPages, _ channel: Channel
  ) throws(ChannelError) {
    try send(stage, epoch, sent, channel)
    let held = gate.held(frames: RecentOutput.frames, bytes: RecentOutput.bytes)
    try channel.sendBulk(
      .checkpoint(
        epoch: epoch, pages: UInt64(stage.pages.count), given: given, mappings: network.mappings,
        addresses: network.addresses, held: held, wait: meter.wait(gate.counters), state: saved))
    FaultPoints.pass(.checkpointSent)
  }
}
