import Foundation

/// A program that ran to its end.
public struct Outcome: Sendable {
  public let status: Int32
  /// Standard output and standard error, each as text.
  public let output: String
  public let errors: String
}

public struct HarnessError: Error, CustomStringConvertible {
  public let description: String
  init(_ description: String) { self.description = description }
}

/// Where things are, and whether this machine can run guests.
public enum Environment {
  /// The repository's root.
  public static let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
    .deletingLastPathComponent()

  /// The minivmm under test: $MINIVMM_BINARY, or the debug build.
  public static let minivmm =
    ProcessInfo.processInfo.environment["MINIVMM_BINARY"] ?? root.appending(path: ".build/debug/minivmm").path

  public static let labGuest = root.appending(path: "guests/lab/out/lab.elf").path
  public static let linuxGuest = root.appending(path: "guests/linux/out")

  /// How many times longer than usual to wait for something: $MINIVMM_TEST_PATIENCE, or 1. For hosts that are emulated.
  public static let patience = ProcessInfo.processInfo.environment["MINIVMM_TEST_PATIENCE"].flatMap(Int.init) ?? 1

  /// The option for the longest time between the checkpoints of a ``ProtectedPair``: $MINIVMM_EPOCH_MAX, or the command's own.
  public static let epochMax =
    ProcessInfo.processInfo.environment["MINIVMM_EPOCH_MAX"].map { ["--epoch-max", $0] } ?? []

  public static var hasKVM: Bool { access("/dev/kvm", R_OK | W_OK) == 0 }
  public static var isRoot: Bool { geteuid() == 0 }
  public static var hasLab: Bool { hasKVM && FileManager.default.fileExists(atPath: labGuest) }
  public static var hasLinux: Bool {
    hasKVM && FileManager.default.fileExists(atPath: linuxGuest.appending(path: "disk.img").path)
  }
}

/// Runs a program and waits for it, `timeout` seconds (times ``Environment/patience``) at the most; then it is killed and the
/// status is -1.
@discardableResult
public func run(
  _ program: String, _ arguments: [String] = [], input: String? = nil, timeout: TimeInterval = 30
) throws -> Outcome {
  let (output, errors, stdin) = (try ChildPipe(), try ChildPipe(), try ChildPipe())
  let child = try Child(
    [program] + arguments, input: input == nil ? Child.nothing : stdin.reading, output: output.writing,
    errors: errors.writing)
  stdin.closeReading()
  output.closeWriting()
  errors.closeWriting()
  if let input { stdin.write(input) }
  stdin.closeWriting()
  let killer = DispatchWorkItem { child.signal(SIGTERM) }
  DispatchQueue.global().asyncAfter(deadline: .now() + timeout * Double(Environment.patience), execute: killer)
  let box = TextBox()
  let group = DispatchGroup()
  DispatchQueue.global().async(group: group) { box.text = errors.readToEnd() }
  let text = output.readToEnd()
  let status = child.wait()
  killer.cancel()
  group.wait()
  return Outcome(status: max(status, -1), output: text, errors: box.text)
}

/// Written by one thread, read by another after it has waited for the first.
private final class TextBox: @unchecked Sendable {
  var text = ""
}
