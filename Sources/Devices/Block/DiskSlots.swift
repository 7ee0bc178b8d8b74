internal import GuestMemory
internal import Synchronization

/// Requests on their way through the worker threads: one slot each, no more than the queue has heads.
///
/// A slot is filled and emptied under the transport's lock, and in between belongs to one worker; the lock here only
/// hands it over.
final class DiskSlots: Sendable {
  private struct Slot {
    var chain = DescriptorChain()
    var request: BlockRequest?
    var memory: GuestMemory?
    var outcome = DiskOutcome.done
  }

  private struct Table {
    var slots: [Slot] = []
    var free: [Int] = []
    var finished: [Int] = []
    var bytes = 0
    var spare = DescriptorChain()
  }

  private let disk: any Disk
  private let table = Mutex(Table())

  init(disk: any Disk) { self.disk = disk }

  /// The chain that requests on the device thread are popped into; kept for its capacity.
  var spareChain: DescriptorChain {
    get {
      table.withLock { table in
        var chain = DescriptorChain()
        swap(&chain, &table.spare)
        return chain
      }
    }
    set { table.withLock { $0.spare = newValue } }
  }

  /// Bytes that the requests in slots read and write.
  var bytes: Int { table.withLock { $0.bytes } }

  /// Moves a request into a free slot; `chain` becomes another, empty one.
  func fill(_ chain: inout DescriptorChain, _ request: BlockRequest, _ memory: GuestMemory) -> Int {
    table.withLock { table in
      let index: Int
      if let free = table.free.popLast() {
        index = free
      } else {
        index = table.slots.count
        table.slots.append(Slot())
      }
      swap(&table.slots[index].chain, &chain)
      table.slots[index].request = request
      table.slots[index].memory = memory
      table.bytes += request.size
      return index
    }
  }

  /// Does a slot's work. Worker thread.
  func perform(_ index: Int) {
    let slot = table.withLock { $0.slots[index] }
    guard let request = slot.request, let memory = slot.memory else { return }
    var outcome = perform(request, slot.chain, memory)
    if request.writesThrough, request.changesDisk, outcome == .done { outcome = disk.flush() }
    table.withLock { $0.slots[index].outcome = outcome }
  }

  private func perform(_ request: BlockRequest, _ chain: DescriptorChain, _ memory: GuestMemory) -> DiskOutcome {
    switch request.operation {
    case .read(let position, let count):
      return disk.read(memory, chain.writable, count: count, position: position, nowait: false)
    case .write(let position, let count):
      return disk.write(memory, chain.readable, offset: 16, count: count, position: position, nowait: false)
    case .flush: return disk.flush()
    case .discard(let ranges):
      for range in ranges {
        let outcome = disk.discard(position: range.position, count: range.count)
        guard outcome == .done else { return outcome }
      }
      return .done
    case .writeZeroes(let ranges):
      for range in ranges {
        let outcome = disk.writeZeroes(position: range.position, count: range.count, unmap: range.unmap)
        guard outcome == .done else { return outcome }
      }
      return .done
    case .identify, .refuse: return .done
    }
  }

  /// Hands every finished request to `body` and frees its slot. What was read is marked here once more: the worker may have
  /// done so before pages were harvested that a guest was not yet to know of, and this is where it gets to know. And no harvest for a
  /// checkpoint runs beside this thread, as it may beside a worker.
  func takeFinished(
    _ workers: DiskWorkers, _ body: (DescriptorChain, BlockRequest, DiskOutcome) -> Void
  ) {
    var finished: [Int] = []
    table.withLock { swap(&finished, &$0.finished) }
    workers.takeFinished(into: &finished)
    for index in finished {
      let slot = table.withLock { $0.slots[index] }
      if let request = slot.request {
        if case .read(_, let count) = request.operation { slot.memory?.markDirty(slot.chain.writable, count: count) }
        body(slot.chain, request, slot.outcome)
      }
      table.withLock { table in
        table.slots[index].request = nil
        table.slots[index].memory = nil
        table.bytes -= slot.request?.size ?? 0
        table.free.append(index)
      }
    }
    finished.removeAll(keepingCapacity: true)
    table.withLock { swap(&finished, &$0.finished) }
  }
}
