import CHarness
import Foundation

/// A program as a shell runs it: on a terminal, as a process group of its own, in the foreground or not.
public final class Job: @unchecked Sendable {
  private var job = harness_job()
  private let transcript = Transcript()

  public init(_ arguments: [String], foreground: Bool) throws {
    var words = arguments.map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    let result = harness_start_job(&words, foreground ? 1 : 0, &job)
    guard result == 0 else { throw HarnessError("cannot start \(arguments[0]): \(String(cString: strerror(-result)))") }
    let terminal = dup(job.terminal)
    Thread.detachNewThread { [transcript] in
      var bytes = [UInt8](repeating: 0, count: 4096)
      while case let count = read(terminal, &bytes, bytes.count), count > 0 {
        transcript.append(Array(bytes[..<count]))
      }
      transcript.append([])
      close(terminal)
    }
  }

  deinit { harness_free_job(&job) }

  public var identifier: Int32 { job.process }
  public var output: String { transcript.text }

  /// The terminal's modes: equal bytes are equal modes.
  public var modes: [UInt8] {
    get {
      var modes = termios()
      guard harness_terminal_modes(job.slave, &modes) == 0 else { return [] }
      return withUnsafeBytes(of: &modes) { Array($0) }
    }
    set {
      var modes = termios()
      withUnsafeMutableBytes(of: &modes) { $0.copyBytes(from: newValue) }
      tcsetattr(job.slave, TCSANOW, &modes)
    }
  }

  public var isRaw: Bool {
    var modes = termios()
    return harness_terminal_modes(job.slave, &modes) == 0 && modes.c_lflag & tcflag_t(ICANON) == 0
  }

  /// Whether it stands still (SIGTTOU and such).
  public var isStopped: Bool {
    let status = (try? String(contentsOfFile: "/proc/\(identifier)/status", encoding: .utf8)) ?? ""
    return status.contains("State:\tT")
  }

  /// `fg`, or taking the terminal back.
  public func bring(toForeground: Bool) { _ = write(job.orders, toForeground ? "f" : "b", 1) }

  public func type(_ text: String) { _ = write(job.terminal, text, text.utf8.count) }

  public func wait(for text: String, timeout: TimeInterval) throws {
    guard transcript.wait(for: text, times: 1, timeout: timeout) else {
      throw HarnessError("no '\(text)' on the terminal within \(timeout) s: …\(output.suffix(600))")
    }
  }

  public func signal(_ number: Int32) { kill(identifier, number) }

  /// The exit code, or -signal; nil when it has not ended in time.
  public func waitForExit(timeout: TimeInterval = 20) -> Int32? {
    let code = harness_job_end(&job, Int32(timeout * 1000))
    return code == -1000 ? nil : code
  }
}
