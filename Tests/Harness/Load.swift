import Foundation

/// Clients at work on a guest's key-value store, in a process of their own (`clients.py`).
public final class Load {
  /// What the clients found, apart from what their history shows.
  public struct Report: Sendable, Decodable {
    public var operations: Int
    /// Longest time that a client waited for a reply or a connection, in milliseconds, and who it was.
    public var gap: Int
    public var slowest: String
    public var resets: Int
    /// Resets of connections that both sides had ended: they answer a duplicate, and nobody sees them.
    public var lateResets: Int
    /// Writes that the guest said the disk had refused.
    public var diskErrors: Int
    public var failures: [String]
    public var connections: Int

    enum CodingKeys: String, CodingKey {
      case operations, gap, slowest, resets, failures, connections
      case diskErrors = "disk_errors"
      case lateResets = "late_resets"
    }
  }

  public struct Options: Sendable {
    /// Pipelining depth of each connection.
    public var connections = [1, 1, 4, 4]
    /// The same of those over IPv6.
    public var ipv6 = [1]
    public var udp = 2
    /// Pipelining depth of each connection to memcached over TCP.
    public var memcached = [1, 4]
    /// Clients that connect again and again.
    public var churn = 1
    /// Clients that have blocks written to the disk.
    public var journal = 2
    /// Longest pause between two requests of a client, in microseconds.
    public var pause = 20_000
    /// Seconds (times ``Environment/patience``) without a reply that are a failure.
    public var patience = 10
    public init() {}
  }

  private let options: Options
  private let process: Guest
  private let history: URL

  /// Starts the clients inside `namespace`.
  public init(_ options: Options = Options(), seed: UInt64, in namespace: Namespace, history: URL) throws {
    self.history = history
    self.options = options
    let settings: [String: Any] = [
      "address": Namespace.guest, "seed": seed, "history": history.path, "tcp": options.connections,
      "address6": Namespace.guestIPv6, "tcp6": options.ipv6, "udp": options.udp, "churn": options.churn,
      "journal": options.journal, "memcached": options.memcached, "pause_us": options.pause,
      "patience": options.patience * Environment.patience,
      "interface": "br0",
    ]
    let text = String(decoding: try JSONSerialization.data(withJSONObject: settings), as: UTF8.self)
    let program = Environment.root.appending(path: "Tests/Harness/clients.py").path
    process = try Guest([program, text], in: namespace, binary: "python3")
  }

  /// Waits until every client has had a reply.
  public func waitUntilReady(timeout: TimeInterval = 30) throws {
    try process.wait(for: "ready", timeout: timeout)
  }

  /// One more connection.
  public func open(depth: Int) { process.type("open \(depth)") }

  /// What has gone wrong so far.
  public var failures: [String] {
    process.console.split(separator: "\n").filter { $0.hasPrefix("failure ") }.map { String($0.dropFirst(8)) }
  }

  /// No more requests; waits for the replies that are due.
  public func finish() throws -> (Report, History) {
    process.type("stop")
    try process.wait(for: "\ndone {", timeout: TimeInterval(options.patience + 5))
    _ = try process.waitForExit(timeout: 5)
    guard let line = process.console.split(separator: "\n").first(where: { $0.hasPrefix("done ") }) else {
      throw HarnessError("the clients ended without a report: \(process.console.suffix(600))")
    }
    return (try JSONDecoder().decode(Report.self, from: Data(line.dropFirst(5).utf8)), try History(file: history))
  }
}
