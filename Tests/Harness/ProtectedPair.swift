import Foundation

/// A guest that is protected, in a network of its own: a primary, and one secondary after another. All end with it.
public final class ProtectedPair {
  public let space: Namespace
  /// Where everything is kept; the caller's to remove.
  public let folder: URL
  public let primary: Guest
  public private(set) var secondaries: [Guest] = []
  private let mode: String
  private var key: String { folder.appending(path: "key").path }

  /// Starts the primary, alone at first, and waits until its guest serves.
  public init(mode: String, guest: GuestKind = .lab, faults: [String] = [], folder: URL) throws {
    self.mode = mode
    self.folder = folder
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    let bytes = Data((0..<32).map { _ in UInt8.random(in: 0...255) })
    let key = folder.appending(path: "key").path
    guard FileManager.default.createFile(atPath: key, contents: bytes, attributes: [.posixPermissions: 0o600]) else {
      throw HarnessError("cannot write \(key)")
    }
    space = try Namespace(taps: ["tap0", "tap1", "tap2"], bridged: true)
    primary = try Guest(
      try ["primary"] + guest.arguments(folder)
        + ["--net", "tap=tap0", "--replicate", "127.0.0.1:7000", "--key", key, "--mode", mode] + Self.options(faults),
      in: space)
    try primary.wait(for: guest.readyLine, timeout: guest.bootTime)
  }

  /// Starts one more secondary, which the primary finds by itself.
  public func addSecondary(faults: [String] = []) throws -> Guest {
    let disks = GuestKind.disks(folder, copy: secondaries.count + 1)
    let guest = try Guest(
      [
        "secondary", "--listen", "127.0.0.1:7000", "--key", key, "--net", "tap=tap\(secondaries.count + 1)",
      ] + disks + Self.options(faults), in: space)
    secondaries.append(guest)
    try guest.wait(for: "waiting for a primary", timeout: 10)
    return guest
  }

  /// Waits until this secondary holds a first checkpoint.
  public func waitUntilProtected(timeout: TimeInterval = 10) throws {
    try primary.wait(for: "pair: now primary", times: secondaries.count, timeout: timeout)
    try secondaries.last?.wait(for: "pair: now secondary", timeout: timeout)
  }

  /// Writes what each process said into the folder.
  public func saveConsoles() {
    try? primary.console.write(to: folder.appending(path: "primary.log"), atomically: false, encoding: .utf8)
    for (index, guest) in secondaries.enumerated() {
      let file = folder.appending(path: "secondary\(index + 1).log")
      try? guest.console.write(to: file, atomically: false, encoding: .utf8)
    }
  }

  private static func options(_ faults: [String]) -> [String] { faults.flatMap { ["--fault", $0] } }
}

/// Which guest is protected.
public enum GuestKind: String, Sendable {
  case lab, linux

  var bootTime: TimeInterval { self == .lab ? 20 : 120 }
  var readyLine: String { self == .lab ? "lab: ready" : "minivmm: services started" }

  func arguments(_ folder: URL) throws -> [String] {
    if self == .lab {
      return [
        "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=kv,echo ip=\(Namespace.guest)/24",
      ]
    }
    let out = Environment.linuxGuest
    let line = try String(contentsOf: out.appending(path: "cmdline"), encoding: .utf8)
      .trimmingCharacters(in: .whitespacesAndNewlines)
    for number in 0...2 {
      try run("cp", ["--sparse=always", out.appending(path: "disk.img").path, Self.disk(folder, number)])
    }
    return [
      "--kernel", out.appending(path: "vmlinux").path, "--initrd", out.appending(path: "initramfs.cpio").path,
      "--memory", "128M", "--disk", Self.disk(folder, 0),
      "--cmdline", "\(line) ip=\(Namespace.guest)::\(Namespace.host):255.255.255.0::eth0:off",
    ]
  }

  private static func disk(_ folder: URL, _ number: Int) -> String {
    folder.appending(path: "disk\(number).img").path
  }

  static func disks(_ folder: URL, copy number: Int) -> [String] {
    let path = disk(folder, number)
    return FileManager.default.fileExists(atPath: path) ? ["--disk", path] : []
  }
}
