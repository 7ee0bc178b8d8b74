import Foundation

/// A guest that is protected, in a network of its own: a primary, and one secondary after another. All end with it.
public final class ProtectedPair {
  public let space: Namespace
  /// Where everything is kept; the caller's to remove.
  public let folder: URL
  /// Every minivmm in the order of their starts.
  public private(set) var guests: [Guest] = []
  /// Who serves the clients.
  public private(set) var primary: Guest
  public private(set) var secondary: Guest?
  /// Where the one who serves looks for a secondary, by the guest's process.
  private var ports: [Int32: Int] = [:]
  /// How often the one who serves had said so before the secondary of now came.
  private var wasPrimary = 0
  private var wasAlone = 0
  private let mode: String
  private var key: String { folder.appending(path: "key").path }

  /// Starts the primary, alone at first, and waits until its guest serves.
  /// - Parameters:
  ///   - cpus: the guest's.
  ///   - dirties: whether the lab guest writes all over its memory too.
  public init(
    mode: String, guest: GuestKind = .lab, cpus: Int = 1, dirties: Bool = false, faults: [String] = [], folder: URL
  ) throws {
    self.mode = mode
    self.folder = folder
    let key = folder.appending(path: "key").path
    try makeKey(key)
    space = try Namespace(taps: (0...Self.secondaries).map { "tap\($0)" }, bridged: true)
    primary = try Guest(
      try ["primary"] + guest.arguments(folder, cpus: cpus, dirties: dirties, burns: mode == "colo++" && cpus > 1)
        + ["--net", "tap=tap0", "--replicate", "127.0.0.1:7000", "--key", key, "--mode", mode]
        + Self.control(folder, 0) + Environment.epochMax + Self.options(faults),
      in: space)
    guests = [primary]
    ports[primary.identifier] = 7000
    try primary.wait(for: guest.readyLine, timeout: guest.bootTime)
  }

  /// Most secondaries that a pair can have, one after another.
  public static let secondaries = 6

  /// Starts a secondary, which the one who serves finds by itself. Should it take over, it looks for one too.
  public func addSecondary(faults: [String] = []) throws -> Guest {
    let number = guests.count
    guard number <= Self.secondaries, let port = ports[primary.identifier] else {
      throw HarnessError("no tap is left for another secondary")
    }
    wasPrimary = primary.count(of: "pair: now primary")
    wasAlone = primary.count(of: "pair: alone")
    let guest = try Guest(
      [
        "secondary", "--listen", "127.0.0.1:\(port)", "--key", key, "--net", "tap=tap\(number)",
        "--replicate", "127.0.0.1:\(7000 + number)", "--shrink", mode == "colo++" ? "guest" : "off",
      ] + Self.control(folder, number) + (try GuestKind.disks(folder, copy: number)) + Self.options(faults), in: space)
    guests.append(guest)
    secondary = guest
    ports[guest.identifier] = 7000 + number
    try guest.wait(for: "waiting for a primary", timeout: 10)
    return guest
  }

  /// Waits until the secondary holds a first checkpoint.
  public func waitUntilProtected(timeout: TimeInterval = 10) throws {
    try primary.wait(for: "pair: now primary", times: wasPrimary + 1, timeout: timeout)
    try secondary?.wait(for: "pair: now secondary", timeout: timeout)
    // It may have been alone before, if the two had to try again.
    wasAlone = primary.count(of: "pair: alone")
  }

  /// Whether the secondary holds a first checkpoint, or held one.
  public var isProtected: Bool { primary.count(of: "pair: now primary") > wasPrimary }

  /// Whether the one who serves has given up its secondary.
  public var isAlone: Bool { primary.count(of: "pair: alone") > wasAlone }

  /// Waits until the secondary has taken over, and serves from now on.
  public func waitForTakeover(timeout: TimeInterval = 10) throws {
    try secondary?.wait(for: "pair: now alone", timeout: timeout)
    takeoverSeen()
  }

  /// The secondary serves from now on.
  public func takeoverSeen() {
    primary = secondary ?? primary
    secondary = nil
  }

  /// Waits until the one who serves has given up its secondary.
  public func waitForLoneliness(timeout: TimeInterval = 10) throws {
    try primary.wait(for: "pair: alone", times: wasAlone + 1, timeout: timeout)
    secondary = nil
  }

  /// The disk of a guest's process.
  public func disk(of guest: Guest) -> URL {
    URL(filePath: GuestKind.disk(folder, guests.firstIndex { $0 === guest } ?? 0))
  }

  /// Writes what each process said into the folder.
  public func saveConsoles() {
    for (index, guest) in guests.enumerated() {
      let file = folder.appending(path: "guest\(index).log")
      try? guest.console.write(to: file, atomically: false, encoding: .utf8)
    }
  }

  /// Writes the status of each running process into the folder, and a snapshot of the serving guest. A developer finds the cause of a
  /// failed round with them.
  public func saveStates() {
    for (index, guest) in guests.enumerated() where guest.isRunning {
      let control = Self.control(folder, index)
      let status = try? Harness.run(Environment.minivmm, ["status", "--json"] + control)
      try? status?.output.write(
        to: folder.appending(path: "status\(index).json"), atomically: false, encoding: .utf8)
      guard guest === primary else { continue }
      _ = try? Harness.run(Environment.minivmm, ["snapshot"] + control + [folder.appending(path: "snapshot").path])
    }
  }

  private static func control(_ folder: URL, _ number: Int) -> [String] {
    ["--control", folder.appending(path: "control\(number)").path]
  }

  private static func options(_ faults: [String]) -> [String] { faults.flatMap { ["--fault", $0] } }
}

/// Which guest is protected.
public enum GuestKind: String, Sendable {
  case lab, linux

  var bootTime: TimeInterval { self == .lab ? 20 : 120 }
  var readyLine: String { self == .lab ? "lab: ready" : "minivmm: services started" }

  /// - Parameter burns: whether all of the lab guest's CPUs fight for a lock, beside what serves.
  func arguments(_ folder: URL, cpus: Int, dirties: Bool, burns: Bool) throws -> [String] {
    if self == .lab {
      try run("truncate", ["-s", "4M", Self.disk(folder, 0)])
      return [
        "--kernel", Environment.labGuest, "--memory", "64M", "--disk", Self.disk(folder, 0), "--cmdline",
        "service=kv,echo,journal\(dirties ? ",dirty" : "")\(burns ? ",burn" : "")"
          + " dirty=pages:2048,rate:10000,seconds:600 burn=seconds:600 ip=\(Namespace.guest)/24 ip6=\(Namespace.guestIPv6)/64",
        "--cpus", "\(cpus)",
      ]
    }
    let out = Environment.linuxGuest
    let line = try String(contentsOf: out.appending(path: "cmdline"), encoding: .utf8)
      .trimmingCharacters(in: .whitespacesAndNewlines)
    try run("cp", ["--sparse=always", out.appending(path: "disk.img").path, Self.disk(folder, 0)])
    return [
      "--kernel", out.appending(path: "vmlinux").path, "--initrd", out.appending(path: "initramfs.cpio").path,
      "--memory", "128M", "--cpus", "\(cpus)", "--disk", Self.disk(folder, 0),
      "--cmdline",
      "\(line) ip=\(Namespace.guest)::\(Namespace.host):255.255.255.0::eth0:off"
        + " minivmm.redis=--appendonly,yes,--appendfsync,always",
    ]
  }

  static func disk(_ folder: URL, _ number: Int) -> String {
    folder.appending(path: "disk\(number).img").path
  }

  /// A secondary's disk, if the primary has one. It holds another disk: nothing of that may be left once it has joined.
  static func disks(_ folder: URL, copy number: Int) throws -> [String] {
    let (original, path) = (disk(folder, 0), disk(folder, number))
    guard FileManager.default.fileExists(atPath: original) else { return [] }
    let size = try FileHandle(forReadingFrom: URL(filePath: original)).seekToEnd()
    try run("truncate", ["-s", "\(size)", path])
    let file = try FileHandle(forWritingTo: URL(filePath: path))
    let old = Data(repeating: 0xa5, count: 1 << 20)
    for start in stride(from: 0, to: Int(size), by: old.count) {
      try file.write(contentsOf: old.prefix(Int(size) - start))
    }
    return ["--disk", path]
  }
}
