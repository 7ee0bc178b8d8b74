/// Which positions of a stream one side has put out: everything below `reach`, and islands beyond it.
struct Coverage: Sendable {
  private(set) var reach: Int64
  /// Sorted, apart from one another and from `reach`.
  private(set) var islands: [Range<Int64>] = []

  init(reach: Int64) { self.reach = reach }

  /// The end of the last byte put out.
  var end: Int64 { islands.last?.upperBound ?? reach }

  mutating func restart(at position: Int64) {
    reach = position
    islands.removeAll(keepingCapacity: true)
  }

  func contains(_ range: Range<Int64>) -> Bool {
    if range.upperBound <= reach { return true }
    for island in islands where island.upperBound >= range.upperBound {
      return island.lowerBound <= max(range.lowerBound, reach)
    }
    return false
  }

  /// Whether `position` is covered, and where that changes next.
  func stretch(at position: Int64) -> (isCovered: Bool, until: Int64) {
    if position < reach { return (true, reach) }
    for island in islands where position < island.upperBound {
      return position < island.lowerBound ? (false, island.lowerBound) : (true, island.upperBound)
    }
    return (false, .max)
  }

  mutating func insert(_ range: Range<Int64>) {
    if range.isEmpty || range.upperBound <= reach { return }
    if range.lowerBound <= reach {
      reach = range.upperBound
      absorb()
      return
    }
    var merged = range
    var first = 0
    while first < islands.count && islands[first].upperBound < merged.lowerBound { first += 1 }
    var last = first
    while last < islands.count && islands[last].lowerBound <= merged.upperBound {
      let island = islands[last]
      merged = min(merged.lowerBound, island.lowerBound)..<max(merged.upperBound, island.upperBound)
      last += 1
    }
    islands.replaceSubrange(first..<last, with: CollectionOfOne(merged))
  }

  private mutating func absorb() {
    var count = 0
    while count < islands.count && islands[count].lowerBound <= reach {
      reach = max(reach, islands[count].upperBound)
      count += 1
    }
    if count > 0 { islands.removeFirst(count) }
  }
}
