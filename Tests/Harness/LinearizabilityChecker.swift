/// Looks for an order of one key's operations in which a single register can have done them: each between its begin and its
/// end, a client's own in their order. After Wing and Gong, with Lowe's memory of what has been tried: the set of operations
/// done and the value they leave.
///
/// The register holds a number or nothing. `incr` adds one (to 0 when there is nothing) and tells the result.
public struct LinearizabilityChecker {
  /// How far a search has come: all operations before `first` are done, and those of `others` beyond it.
  private struct Place: Hashable {
    var first = 0
    var others: Set<Int> = []
    var value: Int?

    func has(_ index: Int) -> Bool { index < first || others.contains(index) }
  }

  private enum Verdict {
    case possible(Int?)
    case refused
  }

  /// By begin.
  private let operations: [Operation]
  /// The operation before, of the same client.
  private var before: [Int?]
  /// Tried and found to lead nowhere.
  private var tried: Set<Place> = []
  /// Tries before it is given up as undecided.
  private let limit: Int
  /// The furthest that the search came, for the report.
  private var best = Place()

  public init(_ operations: [Operation], limit: Int = 2_000_000) {
    self.operations = operations.sorted { ($0.begin, $0.client, $0.number) < ($1.begin, $1.client, $1.number) }
    self.limit = limit
    before = []
    var last: [Int: Int] = [:]
    for (index, operation) in self.operations.enumerated() {
      before.append(last[operation.client])
      last[operation.client] = index
    }
  }

  /// Why there is no such order; nil when there is one.
  public mutating func check() -> String? {
    var stack = [(place: Place(), next: candidates(Place())[...])]
    while let top = stack.indices.last {
      if isDone(stack[top].place) { return nil }
      guard let candidate = stack[top].next.popFirst() else {
        tried.insert(stack[top].place)
        stack.removeLast()
        continue
      }
      guard let place = apply(candidate, to: stack[top].place), !tried.contains(place) else { continue }
      guard tried.count < limit else { return "undecided after \(limit) tries" }
      if place.first > best.first { best = place }
      stack.append((place, candidates(place)[...]))
    }
    return explanation
  }

  /// Nothing is left that must have happened.
  private func isDone(_ place: Place) -> Bool {
    (place.first..<operations.count).allSatisfy { operations[$0].end == nil || place.others.contains($0) }
  }

  /// What may come next: nothing undone ended before it began, and its client's earlier ones are done. Those that ended
  /// first come first, as the right order is mostly near that.
  private func candidates(_ place: Place) -> [Int] {
    var found: [Int] = []
    var earliestEnd = UInt64.max
    for index in place.first..<operations.count where !place.others.contains(index) {
      let operation = operations[index]
      if operation.begin > earliestEnd { break }
      earliestEnd = min(earliestEnd, operation.end ?? .max)
      if let before = before[index], !place.has(before), operations[before].end != nil { continue }
      found.append(index)
    }
    return found.filter { operations[$0].begin <= earliestEnd }
      .sorted { (operations[$0].end ?? .max, $0) < (operations[$1].end ?? .max, $1) }
  }

  private func apply(_ index: Int, to place: Place) -> Place? {
    guard case .possible(let value) = verdict(operations[index], place.value) else { return nil }
    var next = place
    next.value = value
    next.others.insert(index)
    while next.others.remove(next.first) != nil { next.first += 1 }
    return next
  }

  private func verdict(_ operation: Operation, _ value: Int?) -> Verdict {
    switch operation.op {
    case .set, .write: return .possible(operation.argument)
    case .get: return operation.end == nil || operation.result == value ? .possible(value) : .refused
    case .incr:
      let sum = (value ?? 0) &+ 1
      return operation.end == nil || operation.result == sum ? .possible(sum) : .refused
    }
  }

  private var explanation: String {
    let value = best.value.map(String.init) ?? "nothing"
    let near = (best.first..<operations.count).filter { !best.others.contains($0) }.prefix(8)
      .map { index in
        let operation = operations[index]
        let told =
          operation.end == nil
          ? "no reply"
          : operation.op == .set || operation.op == .write
            ? "done" : "told \(operation.result.map(String.init) ?? "nothing")"
        return "client \(operation.client) #\(operation.number) \(operation.op)"
          + "\(operation.argument.map { " \($0)" } ?? "") \(told) [\(operation.begin)…\(operation.end.map(String.init) ?? "")]"
      }
    return "no order explains it; after \(best.first) of \(operations.count) operations, with \(value): "
      + near.joined(separator: "; ")
  }
}
