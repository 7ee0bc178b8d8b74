import Foundation
import Harness
import Testing

extension Integration {
  /// A tap or a peer that goes away under a machine that runs: the machine goes on, and says so.
  @Suite(
    "Lost back ends", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"))
  struct LostBackends {
    /// The `status` of the machine behind a control socket, as people read it.
    static func status(_ control: String) -> String {
      (try? run(Environment.minivmm, ["status", "--control", control]))?.output ?? ""
    }

    /// With the filters and the privileges that a machine has while it runs.
    @Test(arguments: [[], ["--user", "nobody"]]) func socketPeer_isCalledAgain(options: [String]) throws {
      let folder = TestFolder()
      let (path, control) = (folder.path("peer"), folder.path("control"))
      chmod(folder.url.path, 0o755)
      var peer = try #require(Peer(path))
      let guest = try Guest(
        Clients.lab(memory: "64M") + ["--net", "socket=\(path)", "--control", control] + options)
      try guest.wait(for: "lab: ready", timeout: 20)
      #expect(peer.accept())
      peer.close()
      try guest.wait(for: "net0: the peer at \(path) has gone", timeout: 10)
      #expect(Self.status(control).contains("backend lost"))
      peer = try #require(Peer(path))
      #expect(peer.accept(), "the card calls again")
      try guest.wait(for: "net0: connected to \(path) again", timeout: 10)
      #expect(!Self.status(control).contains("backend lost"))
      #expect(peer.hears(), "the guest's frames come by the new connection")
      #expect(guest.isRunning)
      peer.close()
    }

    @Test func tapThatIsDeleted_isTold() throws {
      let space = try Namespace()
      let control = Snapshot.path("control")
      let guest = try Guest(
        Clients.lab(memory: "64M") + ["--net", "tap=\(space.tap)", "--control", control], in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      #expect(!Self.status(control).contains("backend lost"))
      _ = try space.inside("ip", ["link", "del", space.tap])
      try guest.wait(for: "net0: tap \(space.tap) has gone", timeout: 10)
      #expect(Self.status(control).contains("backend lost"))
      #expect(guest.isRunning)
    }

    /// A secondary without a tap could not serve the clients: it promises nothing any more.
    @Test(arguments: ["remus", "colo"]) func secondaryWhoseTapIsDeleted_leaves(mode: String) throws {
      let folder = TestFolder()
      let pair = try ProtectedPair(mode: mode, folder: folder.url)
      let second = try pair.addSecondary()
      try pair.waitUntilProtected()
      _ = try pair.space.inside("ip", ["link", "del", "tap1"])
      try pair.waitForLoneliness()
      #expect(pair.primary.console.contains("pair: alone: the other side refuses: its tap has gone"))
      #expect(try second.waitForExit() == 76)
      #expect(second.console.contains("this side's tap has gone; make it again"))
      #expect(second.count(of: "now takingOver") == 0)
      // The guest is none the worse.
      let client = try pair.space.connect(port: 11211)
      #expect(try client.exchange("set k 0 0 1\r\nx\r\n", expecting: "STORED\r\n"))
      // Another secondary, with a tap of its own, protects it.
      _ = try pair.addSecondary()
      try pair.waitUntilProtected()
    }

    /// The guest goes on where it has a network.
    @Test(arguments: ["remus", "colo", "colo++"]) func primaryWhoseTapIsDeleted_handsOver(mode: String) throws {
      let folder = TestFolder()
      let pair = try ProtectedPair(mode: mode, folder: folder.url)
      let (first, second) = (pair.primary, try pair.addSecondary())
      try pair.waitUntilProtected()
      let client = try pair.space.connect(port: 11211)
      #expect(try client.exchange("set k 0 0 1\r\nx\r\n", expecting: "STORED\r\n"))
      _ = try pair.space.inside("ip", ["link", "del", "tap0"])
      try first.wait(for: "this side's tap has gone; the secondary is asked to take over", timeout: 10)
      try second.wait(for: "pair: now alone", timeout: 10)
      #expect(try client.exchange("get k\r\n", expecting: "VALUE k 0 1\r\nx\r\nEND\r\n", timeout: 20_000))
      #expect(try first.waitForExit() == 0, "\(first.console)")
      #expect(first.console.contains("net0: its tap has gone"))
    }

    /// Nobody is there to hand over to: it goes on, says so, and hands over to the first who comes.
    @Test func primaryWithoutASecondary_saysSo_andHandsOverLater() throws {
      let folder = TestFolder()
      let pair = try ProtectedPair(mode: "colo", folder: folder.url)
      _ = try pair.space.inside("ip", ["link", "del", "tap0"])
      try pair.primary.wait(for: "net0: its tap has gone", timeout: 10)
      let second = try pair.addSecondary()
      try second.wait(for: "pair: now alone", timeout: 20)
      let client = try pair.space.connect(port: 11211)
      #expect(try client.exchange("set k 0 0 1\r\nx\r\n", expecting: "STORED\r\n"))
    }
  }
}

/// Whom a card's socket is connected to.
private final class Peer {
  private let path: String
  private let listener: Int32
  private var connection: Int32 = -1

  /// Nil when it can't listen there.
  init?(_ path: String) {
    self.path = path
    unlink(path)
    listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(listener, $0, size) }
    }
    chmod(path, 0o777)
    guard bound == 0, listen(listener, 4) == 0 else { return nil }
  }

  /// Takes the next connection; false when none comes within 20 seconds.
  func accept() -> Bool {
    guard Self.waits(listener) else { return false }
    connection = Glibc.accept(listener, nil, nil)
    return connection >= 0
  }

  /// Whether something comes within 20 seconds, which a guest's own broadcasts are enough for.
  func hears() -> Bool {
    // An ARP request for the guest, which it answers.
    let ask: [UInt8] =
      [0, 0, 0, 42] + [UInt8](repeating: 0xff, count: 6) + [2, 0, 0, 0, 0, 9, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]
      + [2, 0, 0, 0, 0, 9] + [10, 0, 0, 1] + [UInt8](repeating: 0, count: 6) + [10, 0, 0, 2]
    guard write(connection, ask, ask.count) == ask.count else { return false }
    return Self.waits(connection)
  }

  private static func waits(_ descriptor: Int32) -> Bool {
    var entry = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    return poll(&entry, 1, 20_000) > 0
  }

  func close() {
    if connection >= 0 { Glibc.close(connection) }
    Glibc.close(listener)
    unlink(path)
  }
}
