/// What a ``FlowTable`` asks of the flows in it.
protocol ComparedFlow {
  init()
  /// Nothing is in waiting, so that it can be forgotten.
  var isIdle: Bool { get }
  /// Bytes of memory that it holds and can give back.
  var memory: Int { get }
  /// Which checkpoint it has been told of.
  var epoch: UInt64 { get }
  /// Both sides have restarted from the primary's state.
  mutating func restart(epoch: UInt64)
  /// Gives its memory back. Only for an idle flow: what it knows stays.
  mutating func releaseMemory()
  /// From now on only a checkpoint helps.
  mutating func breakOff(_ budget: inout ComparatorBudget)
}

/// Flows by key, the least recently used last. Nothing is allocated but for a flow that was not there.
struct FlowTable<Flow: ComparedFlow> {
  private static var none: Int { -1 }

  private struct Links {
    var key: FlowKey
    var newer: Int
    var older: Int
  }

  var flows: [Flow] = []
  private var links: [Links] = []
  private var slots: [FlowKey: Int] = [:]
  private var free: [Int] = []
  private var newest = none
  private var oldest = none
  /// Where the search for memory goes on.
  private var hand = 0
  /// The last one found: frames come in bursts.
  private var lastSlot = none

  var count: Int { slots.count }

  /// Room for so many flows from the start: growing would copy them all while a packet waits.
  init(capacity: Int) {
    flows.reserveCapacity(capacity)
    links.reserveCapacity(capacity)
    slots.reserveCapacity(capacity)
  }

  /// The slot of a flow, made the most recently used.
  mutating func find(_ key: FlowKey) -> Int? {
    if lastSlot != Self.none && links[lastSlot].key == key {
      touch(lastSlot)
      return lastSlot
    }
    guard let slot = slots[key] else { return nil }
    touch(slot)
    lastSlot = slot
    return slot
  }

  /// A new flow, in place of the least recently used idle one if there are `limit` already.
  /// - Returns: nil if none of the oldest is idle.
  mutating func add(_ key: FlowKey, limit: Int, epoch: UInt64, budget: inout ComparatorBudget) -> Int? {
    if slots.count >= limit {
      guard let victim = oldestIdle(epoch: epoch) else { return nil }
      remove(victim, budget: &budget)
    }
    let slot: Int
    if let unused = free.popLast() {
      slot = unused
      links[slot].key = key
    } else {
      slot = flows.count
      flows.append(Flow())
      links.append(Links(key: key, newer: Self.none, older: Self.none))
    }
    flows[slot].restart(epoch: epoch)
    slots[key] = slot
    pushNewest(slot)
    lastSlot = slot
    return slot
  }

  mutating func remove(_ slot: Int, budget: inout ComparatorBudget) {
    budget.bytes -= flows[slot].memory
    flows[slot] = Flow()
    slots[links[slot].key] = nil
    unlink(slot)
    free.append(slot)
    lastSlot = Self.none
  }

  /// Takes the memory of an idle flow other than `slot`, round and round.
  mutating func shed(sparing slot: Int?, epoch: UInt64, budget: inout ComparatorBudget) -> Bool {
    for _ in 0..<min(flows.count, 1024) {
      hand = hand + 1 < flows.count ? hand + 1 : 0
      if hand == slot || flows[hand].memory == 0 { continue }
      if flows[hand].epoch != epoch { flows[hand].restart(epoch: epoch) }
      guard flows[hand].isIdle else { continue }
      budget.bytes -= flows[hand].memory
      flows[hand].releaseMemory()
      return true
    }
    return false
  }

  // Bounded: what is busy at the old end is not searched past, for a guest that wants long searches.
  private mutating func oldestIdle(epoch: UInt64) -> Int? {
    var slot = oldest
    for _ in 0..<16 where slot != Self.none {
      if flows[slot].epoch != epoch { flows[slot].restart(epoch: epoch) }
      if flows[slot].isIdle { return slot }
      slot = links[slot].newer
    }
    return nil
  }

  private mutating func touch(_ slot: Int) {
    if slot == newest { return }
    unlink(slot)
    pushNewest(slot)
  }

  private mutating func pushNewest(_ slot: Int) {
    links[slot].newer = Self.none
    links[slot].older = newest
    if newest != Self.none { links[newest].newer = slot }
    newest = slot
    if oldest == Self.none { oldest = slot }
  }

  private mutating func unlink(_ slot: Int) {
    let (newer, older) = (links[slot].newer, links[slot].older)
    if newer == Self.none { newest = older } else { links[newer].older = older }
    if older == Self.none { oldest = newer } else { links[older].newer = newer }
  }
}

extension FlowTable: Sendable where Flow: Sendable {}
