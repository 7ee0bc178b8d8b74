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

  public static var hasKVM: Bool { access("/dev/kvm", R_OK | W_OK) == 0 }
  public static var isRoot: Bool { geteuid() == 0 }
  public static var hasLab: Bool { hasKVM && FileManager.default.fileExists(atPath: labGuest) }
  public static var hasLinux: Bool {
    hasKVM && FileManager.default.fileExists(atPath: linuxGuest.appending(path: "disk.img").path)
  }
}

/// Runs a program and waits for it, `timeout` seconds at the most; then it is killed and the status is -1.
@discardableResult
public func run(
  _ program: String, _ arguments: [String] = [], input: String? = nil, timeout: TimeInterval = 30
) throws -> Outcome {
  let process = Process()
  process.executableURL = URL(filePath: "/usr/bin/env")
  process.arguments = [program] + arguments
  let (output, errors, stdin) = (Pipe(), Pipe(), Pipe())
  process.standardOutput = output
  process.standardError = errors
  process.standardInput = input == nil ? FileHandle.nullDevice : stdin
  try process.run()
  if let input {
    stdin.fileHandleForWriting.write(Data(input.utf8))
    try stdin.fileHandleForWriting.close()
  }
  let killer = DispatchWorkItem { process.terminate() }
  DispatchQueue.global().asyncAfter(deadline: .now() + timeout, execute: killer)
  let box = TextBox()
  let group = DispatchGroup()
  DispatchQueue.global().async(group: group) {
    box.text = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  }
  let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
  process.waitUntilExit()
  killer.cancel()
  group.wait()
  return Outcome(
    status: process.terminationReason == .exit ? process.terminationStatus : -1, output: text, errors: box.text)
}

/// Written by one thread, read by another after it has waited for the first.
private final class TextBox: @unchecked Sendable {
  var text = ""
}
