import CHarness
import Foundation

/// A network namespace with one tap, 10.0.0.1/24 and fd00::1/64 on the host's side; removed when it goes.
public final class Namespace: Sendable {
  public static let host = "10.0.0.1"
  public static let guest = "10.0.0.2"
  public static let guestIPv6 = "fd00::2"
  public let name: String
  public let tap = "tap0"

  /// - Parameters:
  ///   - bridged: all taps are ports of one bridge: one network with several machines on it.
  ///   - addressed: the bridge has the host's addresses.
  public init(taps: [String] = ["tap0"], bridged: Bool = false, addressed: Bool = true) throws {
    name = "minivmm-test-\(getpid())-\(UInt32.random(in: 0..<1_000_000))"
    try require("ip", ["netns", "add", name])
    try inside("ip", ["link", "set", "lo", "up"])
    if bridged {
      try inside("ip", ["link", "add", "br0", "type", "bridge"])
      if addressed {
        try inside("ip", ["address", "add", "\(Self.host)/24", "dev", "br0"])
        try inside("ip", ["address", "add", "fd00::1/64", "dev", "br0", "nodad"])
      }
      try inside("ip", ["link", "set", "br0", "up"])
    }
    for (index, tap) in taps.enumerated() {
      try inside("ip", ["tuntap", "add", tap, "mode", "tap"])
      guard !bridged else {
        try inside("ip", ["link", "set", tap, "master", "br0"])
        try inside("ip", ["link", "set", tap, "up"])
        continue
      }
      try inside("ip", ["address", "add", "10.0.\(index).1/24", "dev", tap])
      try inside("ip", ["address", "add", "fd00:0:0:\(index)::1/64", "dev", tap, "nodad"])
      try inside("ip", ["link", "set", tap, "up"])
    }
  }

  deinit { _ = try? run("ip", ["netns", "delete", name]) }

  /// Runs a program inside and fails unless it succeeds.
  @discardableResult
  public func inside(_ program: String, _ arguments: [String], timeout: TimeInterval = 30) throws -> String {
    try require("ip", ["netns", "exec", name, program] + arguments, timeout: timeout)
  }

  /// A TCP or UDP socket inside, connected to the guest.
  public func connect(port: UInt16, udp: Bool = false, to address: String = guest, timeout: Int = 5000) throws
    -> Connection
  {
    try connect(udp ? SOCK_DGRAM : SOCK_STREAM, port, address, timeout)
  }

  /// An ICMPv6 socket inside, for ``Connection/ping(_:)``.
  public func connectICMPv6(to address: String) throws -> Connection { try connect(SOCK_RAW, 0, address, 5000) }

  private func connect(_ type: __socket_type, _ port: UInt16, _ address: String, _ timeout: Int) throws -> Connection {
    let descriptor = harness_connect(
      "/run/netns/\(name)", Int32(type.rawValue), address, port, Int32(timeout * Environment.patience))
    guard descriptor >= 0 else {
      throw HarnessError("connect to \(address):\(port): \(String(cString: strerror(-descriptor)))")
    }
    return Connection(descriptor: descriptor)
  }

  /// Takes an interface's checksum and segmentation offloads away.
  public func disableOffloads(_ interface: String) throws {
    let result = harness_disable_offloads("/run/netns/\(name)", interface)
    guard result == 0 else { throw HarnessError("offloads of \(interface): \(String(cString: strerror(-result)))") }
  }

  @discardableResult
  private func require(_ program: String, _ arguments: [String], timeout: TimeInterval = 30) throws -> String {
    let outcome = try run(program, arguments, timeout: timeout)
    guard outcome.status == 0 else {
      throw HarnessError(
        "\(program) \(arguments.joined(separator: " ")) ended with \(outcome.status): \(outcome.errors)\(outcome.output)"
      )
    }
    return outcome.output
  }
}

/// A connected socket of a client.
public final class Connection: Sendable {
  private let descriptor: Int32
  init(descriptor: Int32) { self.descriptor = descriptor }
  deinit { close(descriptor) }

  public func send(_ text: String) throws { try send(Array(text.utf8)) }

  public func send(_ bytes: [UInt8]) throws {
    let result = harness_send_all(descriptor, bytes, Int32(bytes.count))
    guard result >= 0 else { throw HarnessError("send: \(String(cString: strerror(-result)))") }
  }

  /// Exactly `count` bytes, or fewer when the peer closed or nothing came for `timeout` milliseconds.
  public func receive(_ count: Int, timeout: Int = 5000) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    let got = harness_receive(descriptor, &bytes, Int32(count), Int32(timeout * Environment.patience))
    guard got >= 0 else { throw HarnessError("receive: \(String(cString: strerror(-got)))") }
    return Array(bytes.prefix(Int(got)))
  }

  /// Sends an echo request and expects its reply.
  public func ping(_ payload: [UInt8]) throws -> Bool {
    let (request, reply) = (UInt8(128), UInt8(129))
    let message = [0x4d, 0x56, 0, 1] + payload  // identifier, sequence
    try send([request, 0, 0, 0] + message)  // the kernel fills in the checksum
    let answer = try receive(4 + message.count)
    return answer.first == reply && answer.dropFirst(4) == message[...]
  }

  /// Sends a request and expects this reply, to the byte.
  public func exchange(_ request: String, expecting reply: String, timeout: Int = 5000) throws -> Bool {
    try send(request)
    return try receive(reply.utf8.count, timeout: timeout) == Array(reply.utf8)
  }
}
