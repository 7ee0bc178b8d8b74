import CHarness
import Foundation

/// What /proc says of another process.
public enum ProcessThreads {
  public struct Thread: Sendable {
    public let identifier: Int32
    public let name: String
    /// The lines of its `status` file, by name.
    public let status: [String: String]
  }

  public static func of(_ process: Int32) -> [Thread] {
    let folder = "/proc/\(process)/task"
    return ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).compactMap { Int32($0) }.sorted()
      .compactMap { thread in
        guard let text = try? String(contentsOfFile: "\(folder)/\(thread)/status", encoding: .utf8) else { return nil }
        var status: [String: String] = [:]
        for line in text.split(separator: "\n") {
          let pair = line.split(separator: ":", maxSplits: 1)
          if pair.count == 2 { status[String(pair[0])] = pair[1].trimmingCharacters(in: .whitespaces) }
        }
        return Thread(identifier: thread, name: status["Name"] ?? "", status: status)
      }
  }

  public static func children(of process: Int32) -> [Int32] {
    let path = "/proc/\(process)/task/\(process)/children"
    return ((try? String(contentsOfFile: path, encoding: .utf8)) ?? "").split(separator: " ").compactMap { Int32($0) }
  }

  public static func descriptorCount(of process: Int32) -> Int {
    ((try? FileManager.default.contentsOfDirectory(atPath: "/proc/\(process)/fd")) ?? []).count
  }

  /// Heaps of malloc's arenas: 64 MiB of address space each, of which the first part is in use.
  public static func mallocHeaps(of process: Int32) -> Int {
    let text = (try? String(contentsOfFile: "/proc/\(process)/maps", encoding: .utf8)) ?? ""
    let ranges = text.split(separator: "\n").compactMap { line -> (start: UInt64, end: UInt64, mode: Substring)? in
      let words = line.split(separator: " ")
      let ends = words[0].split(separator: "-").compactMap { UInt64($0, radix: 16) }
      return ends.count == 2 ? (ends[0], ends[1], words[1]) : nil
    }
    let size: UInt64 = 64 << 20
    return zip(ranges, ranges.dropFirst()).count { used, rest in
      guard used.mode == "rw-p", rest.mode == "---p", rest.start == used.end else { return false }
      return used.start % size == 0 && rest.end >= used.start + size
    }
  }

  /// Seconds of CPU time that it has used.
  public static func cpuTime(of process: Int32) -> Double {
    let text = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
    // The name, in parentheses, may hold anything.
    let fields = (text.split(separator: ")").last ?? "").split(separator: " ")
    guard fields.count > 12, let user = Double(fields[11]), let system = Double(fields[12]) else { return 0 }
    return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
  }

  public enum Disturbance: String, CaseIterable, Sendable {
    /// A system call that no filter allows.
    case deniedCall
    /// A jump to where no code is.
    case badJump
    /// The end of its stack.
    case noStack
  }

  /// Does this to a thread that waits.
  public static func disturb(_ thread: Thread, _ how: Disturbance) throws {
    let kinds: [Disturbance: harness_disturbance] = [
      .deniedCall: harness_denied_call, .badJump: harness_bad_jump, .noStack: harness_no_stack,
    ]
    let result = harness_disturb(thread.identifier, Int32(kinds[how]!.rawValue))
    guard result == 0 else { throw HarnessError("ptrace: \(String(cString: strerror(-result)))") }
  }

  public static func signal(_ process: Int32, _ thread: Thread, _ number: Int32) {
    _ = harness_signal_thread(process, thread.identifier, number)
  }
}

/// A client of a unix stream socket that says what it is told.
public final class UnixClient: Sendable {
  private let descriptor: Int32

  /// Throws ``HarnessError`` where nobody listens; nil when the backlog is full.
  public init?(_ path: String) throws {
    descriptor = harness_unix_connect(path)
    if descriptor == -EAGAIN { return nil }
    guard descriptor >= 0 else { throw HarnessError("connect to \(path): \(String(cString: strerror(-descriptor)))") }
  }

  deinit { close(descriptor) }

  /// Sends text, with this many descriptors of /dev/null.
  public func send(_ text: String, descriptors: Int = 0) throws {
    let nothing = [Int32](repeating: Child.nothing, count: descriptors)
    let result =
      descriptors == 0
      ? harness_send_all(descriptor, Array(text.utf8), Int32(text.utf8.count))
      : harness_send_descriptors(descriptor, text, nothing, Int32(descriptors))
    guard result >= 0 else { throw HarnessError("send: \(String(cString: strerror(-result)))") }
  }

  /// What has come once there is a whole line, the end, or nothing for `timeout` seconds.
  public func line(timeout: Double = 5) -> String {
    var bytes: [UInt8] = []
    while bytes.last != UInt8(ascii: "\n") {
      var byte: UInt8 = 0
      guard harness_receive(descriptor, &byte, 1, Int32(timeout * 1000)) == 1 else { break }
      bytes.append(byte)
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}
