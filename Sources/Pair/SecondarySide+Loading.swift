internal import CLinux
internal import Devices
internal import Glibc
internal import GuestMemory
internal import MiniVMM
internal import Replication
internal import Synchronization

/// Loading what is whole, and going on from it alone.
extension SecondarySide {
  // MARK: Loading thread

  func load(_ parts: Parts, _ queue: CheckpointQueue, _ channel: Channel, _ sync: DiskSync) {
    var dirty = PageSet(count: parts.machine.memory.pageCount)
    while true {
      let checkpoints = queue.take()
      guard let last = checkpoints.last else { return }
      let start = lx_monotonic_ns()
      do {
        try load(parts, checkpoints, last, &dirty)
        sync.loaded()
        let time = lx_monotonic_ns() - start
        meter.loaded(last.epoch, nanoseconds: time)
        meter.rolledBack(pages: dirty.population)
        try channel.send(.loaded(epoch: last.epoch, nanoseconds: time))
        timeShrinking(parts, queue)
      } catch let error as ChannelError {
        // The receiving thread meets it as well; what is whole is loaded all the same.
        _ = error
      } catch {
        state.withLock { $0.broken = "\(error)" }
        queue.end()
        return channel.close()
      }
      queue.giveBack(checkpoints)
    }
  }

  private func load(
    _ parts: Parts, _ checkpoints: [WholeCheckpoint], _ last: WholeCheckpoint, _ dirty: inout PageSet
  ) throws {
    let machine = parts.machine
    let first = loaded == 0
    machine.pause()
    if let end = machine.holdEnds() { meter.ownGuestEnded("\(end)") }
    state.withLock { $0.broken = "it was not finished" }
    try machine.load(
      checkpoints.map(\.stage), state: last.state, dirty: &dirty, refreshing: refreshes, clock: .catchesUp)
    FaultPoints.pass(.rolledBack)
    for disk in parts.disks {
      let error = disk.load(epoch: last.epoch)
      guard error == 0 else { throw HostError(operation: "writing the disk", errno: error) }
    }
    try parts.backend?.loaded(
      epoch: last.epoch, given: last.given, mappings: last.mappings, addresses: last.addresses,
      seeksEarly: last.search == .on)
    state.withLock { state in
      state.loaded = last.epoch
      state.broken = nil
      state.unconfirmed.removeAll()
      // The primary may die before it lets them out.
      for frame in last.held { state.unconfirmed.add(frame, now: lx_monotonic_ns()) }
    }
    early.loaded(last.epoch, last.search)
    FaultPoints.pass(.loaded)
    peer.change(.firstCheckpoint)
    // What the first copy took.
    if first { lx_trim_heap() }
    guard mode.compares else { return }
    let changes = shrinker.withLock { $0.epochEnded(wait: checkpoints.map(\.wait).max() ?? 0, of: machine.cpus) }
    let shrink = Shrink(level: shrink.level, target: shrinker.withLock { $0.active })
    if shrink.level == .guest { shrink.apply(machine, parts.registers) }
    if first {
      try machine.start()
      lx_thread_prefer()
    } else {
      machine.resume()
    }
    if shrink.level == .host, first || changes { shrink.apply(machine, parts.registers) }
    parts.backend?.signal()
    parts.backend?.log.trim()
  }

  // MARK: Takeover

  /// - Parameter lastHeard: when the primary's last word was read.
  func takeOver(_ parts: Parts, lastHeard: UInt64) -> Ending {
    let machine = parts.machine
    FaultPoints.pass(.takeoverBegun)
    // What comes from here on, no primary has had.
    if let tap = parts.tap { strays.withLock { $0.drain(tap) } }
    machine.pause()
    for disk in parts.disks {
      let error = disk.takeOver()
      guard error == 0 else {
        machine.stop()
        return .gaveUp("\(HostError(operation: "writing the disk at the takeover", errno: error))")
      }
    }
    FaultPoints.pass(.takeoverDisks)
    shrink.lift(machine, parts.registers)
    parts.successor.take(term: peer.term, early: early)
    let resets = early.takeOver(parts.backend?.log)
    let late = strays.withLock { strays in
      if let tap = parts.tap { strays.drain(tap) }
      return strays.take(since: lastHeard, without: parts.backend?.log.sinceCheckpoint ?? [])
    }
    parts.backend?.serve(parts.successor, early: early, after: late)
    FaultPoints.pass(.takeoverServed)
    if let tap = parts.tap {
      for frame in (parts.backend?.addresses ?? CardAddresses()).announcements(parts.mac) {
        _ = TapOutput.send([UInt8](repeating: 0, count: NetHeader.size) + frame, to: tap)
      }
      let sent = state.withLock { $0.unconfirmed.take(now: lx_monotonic_ns()) }
      let received = parts.backend?.log.sinceCheckpoint ?? []
      for index in Repetition.needed(sent: sent, received: received, header: NetHeader.size) {
        if !early.isWithheld(sent[index]) { _ = TapOutput.send(sent[index], to: tap) }
      }
      for reset in resets { _ = TapOutput.send(reset, to: tap) }
    }
    peer.change(.takeoverDone)
    machine.acceptEnds()
    do {
      if mode.compares { machine.resume() } else { try machine.start() }
    } catch { return .gaveUp("\(error)") }
    parts.backend?.signal()
    return .tookOver
  }
}
