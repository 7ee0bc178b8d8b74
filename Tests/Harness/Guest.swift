import Foundation

/// A running minivmm with its console; ended when it goes.
public final class Guest: @unchecked Sendable {
  private let process = Process()
  private let lock = NSCondition()
  private var text = ""
  private var ended = false
  private let input = Pipe()

  /// Starts `minivmm ARGUMENTS`, inside `namespace` if there is one.
  public init(_ arguments: [String], in namespace: Namespace? = nil, binary: String = Environment.minivmm) throws {
    process.executableURL = URL(filePath: "/usr/bin/env")
    process.arguments = (namespace.map { ["ip", "netns", "exec", $0.name] } ?? []) + [binary] + arguments
    let output = Pipe()
    process.standardOutput = output
    process.standardError = output
    process.standardInput = input
    output.fileHandleForReading.readabilityHandler = { [weak self] handle in
      let data = handle.availableData
      if data.isEmpty { handle.readabilityHandler = nil }
      self?.lock.lock()
      self?.text += String(decoding: data, as: UTF8.self)
      self?.ended = data.isEmpty
      self?.lock.broadcast()
      self?.lock.unlock()
    }
    try process.run()
  }

  deinit {
    if process.isRunning { kill(process.processIdentifier, SIGKILL) }
    process.waitUntilExit()
  }

  public var console: String {
    lock.lock()
    defer { lock.unlock() }
    return text
  }

  /// How often the console has shown this.
  public func count(of line: String) -> Int { console.ranges(of: line).count }

  public var isRunning: Bool { process.isRunning }

  public var identifier: Int32 { process.processIdentifier }

  /// Types on the console.
  public func type(_ line: String) { input.fileHandleForWriting.write(Data((line + "\n").utf8)) }

  /// Waits until the console has shown `line`, so many times; fails with the console's end when it does not.
  public func wait(for line: String, times: Int = 1, timeout: TimeInterval) throws {
    let deadline = Date(timeIntervalSinceNow: timeout)
    lock.lock()
    defer { lock.unlock() }
    func isShown() -> Bool { times == 1 ? text.contains(line) : text.ranges(of: line).count >= times }
    while !isShown() {
      guard !ended, lock.wait(until: deadline) else {
        if isShown() { return }
        throw HarnessError(
          "no '\(line)' on the console\(ended ? ", which ended" : " within \(timeout) s"): …\(text.suffix(600))")
      }
    }
  }

  /// Waits for the process's own end; its exit code, or -signal.
  public func waitForExit(timeout: TimeInterval = 30) throws -> Int32 {
    guard waitUntil(seconds: timeout, { !process.isRunning }) else {
      throw HarnessError("minivmm did not end within \(timeout) s: …\(console.suffix(600))")
    }
    return process.terminationReason == .exit ? process.terminationStatus : -process.terminationStatus
  }

  public func signal(_ number: Int32) { kill(process.processIdentifier, number) }
}
