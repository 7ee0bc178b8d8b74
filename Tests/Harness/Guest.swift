import Foundation

/// A running minivmm with its console; ended when it goes.
public final class Guest: @unchecked Sendable {
  private let child: Child
  private let transcript = Transcript()
  private let input: ChildPipe

  /// Starts `minivmm ARGUMENTS`, inside `namespace` if there is one.
  public init(_ arguments: [String], in namespace: Namespace? = nil, binary: String = Environment.minivmm) throws {
    input = try ChildPipe()
    let output = try ChildPipe()
    child = try Child(
      (namespace.map { ["ip", "netns", "exec", $0.name] } ?? []) + [binary] + arguments, input: input.reading,
      output: output.writing, errors: output.writing)
    input.closeReading()
    output.closeWriting()
    Thread.detachNewThread { [transcript] in
      while case let part = output.read(), !part.isEmpty { transcript.append(part) }
      transcript.append([])
    }
  }

  deinit {
    child.signal(SIGKILL)
    child.wait()
  }

  public var console: String { transcript.text }

  /// How often the console has shown this.
  public func count(of line: String) -> Int { console.ranges(of: line).count }

  public var isRunning: Bool { child.isRunning }

  public var identifier: Int32 { child.identifier }

  /// Types on the console.
  public func type(_ line: String) { input.write(line + "\n") }

  /// Waits until the console has shown `line`, so many times; fails with the console's end when it does not.
  public func wait(for line: String, times: Int = 1, timeout: TimeInterval) throws {
    guard transcript.wait(for: line, times: times, timeout: timeout) else {
      throw HarnessError(
        "no '\(line)' on the console\(transcript.hasEnded ? ", which ended" : " within \(timeout) s"): "
          + "…\(console.suffix(600))")
    }
  }

  /// Waits for the process's own end; its exit code, or -signal.
  public func waitForExit(timeout: TimeInterval = 30) throws -> Int32 {
    guard waitUntil(seconds: timeout, { !child.isRunning }) else {
      throw HarnessError("minivmm did not end within \(timeout) s: …\(console.suffix(600))")
    }
    return child.wait()
  }

  public func signal(_ number: Int32) { child.signal(number) }
}

/// What a program has said so far: one thread adds, any may ask.
final class Transcript: @unchecked Sendable {
  private let lock = NSCondition()
  private var said = ""
  private var ended = false

  var text: String { lock.withLock { said } }
  var hasEnded: Bool { lock.withLock { ended } }

  /// Adds what came; nothing is the end.
  func append(_ part: [UInt8]) {
    lock.withLock {
      said += String(decoding: part, as: UTF8.self)
      ended = part.isEmpty
      lock.broadcast()
    }
  }

  /// False when `line` was not said so often before the end or the time-out, in seconds.
  func wait(for line: String, times: Int, timeout: TimeInterval) -> Bool {
    let deadline = Date(timeIntervalSinceNow: timeout * Double(Environment.patience))
    return lock.withLock {
      func isSaid() -> Bool { times == 1 ? said.contains(line) : said.ranges(of: line).count >= times }
      while !isSaid() {
        guard !ended, lock.wait(until: deadline) else { return isSaid() }
      }
      return true
    }
  }
}
