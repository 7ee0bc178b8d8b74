import Foundation

/// What one client asked of the store, and what it was told.
public struct Operation: Equatable, Sendable, Decodable {
  public enum Kind: String, Sendable, Decodable { case set, get, incr, write }

  /// The client, and the operation's place in what that client asked: a server answers a client in order.
  public var client: Int
  public var number: Int
  public var key: String
  public var op: Kind
  /// What `set` and `write` write: a number, and a block's generation.
  public var argument: Int?
  /// What `get` and `incr` were told; nil from `get` is "no such key".
  public var result: Int?
  /// Nanoseconds of the monotonic clock, before the request and after the reply. Without `end` there was no reply: the
  /// operation may have happened, at any time since, or not.
  public var begin: UInt64
  public var end: UInt64?

  public init(
    client: Int, number: Int, key: String = "k", _ op: Kind, argument: Int? = nil, result: Int? = nil, begin: UInt64,
    end: UInt64?
  ) {
    self.client = client
    self.number = number
    self.key = key
    self.op = op
    self.argument = argument
    self.result = result
    self.begin = begin
    self.end = end
  }
}

/// The operations of all clients of a run.
public struct History: Sendable {
  public var operations: [Operation]

  public init(_ operations: [Operation]) { self.operations = operations }

  /// Reads the file that `clients.py` writes.
  public init(file: URL) throws {
    let decoder = JSONDecoder()
    operations = try Data(contentsOf: file).split(separator: UInt8(ascii: "\n")).map {
      try decoder.decode(Operation.self, from: $0)
    }
  }

  /// What is wrong with it, key by key: empty when there is an order in which one store can have done all of it.
  public func check() -> [String] {
    Dictionary(grouping: operations, by: \.key).sorted { $0.key < $1.key }.compactMap { key, operations in
      var checker = LinearizabilityChecker(operations)
      return checker.check().map { "\(key): \($0)" }
    }
  }
}
