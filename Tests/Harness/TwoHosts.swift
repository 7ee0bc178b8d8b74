import Foundation

/// Two hosts for the sides of a pair, each a namespace of its own, and the network between them, where the clients are. Three
/// switches join them: the clients', the channel's and the beats'. A host can be taken off each, as silently as by a broken
/// switch: its interface stays up, and nothing comes or goes.
public final class TwoHosts: Sendable {
  public enum Way: Int, CaseIterable, Sendable { case clients, channel, beats }

  /// The clients' namespace, with the host's addresses of ``Namespace``.
  public let network: Namespace
  /// Each has a tap, `tap0`, on the clients' switch.
  public let hosts: [Namespace]

  public init() throws {
    network = try Namespace(taps: [], bridged: true)
    hosts = [try Namespace(bridged: true, addressed: false), try Namespace(bridged: true, addressed: false)]
    for way in Way.allCases {
      if way != .clients {
        try network.inside("ip", ["link", "add", Self.bridge(way), "type", "bridge"])
        try network.inside("ip", ["link", "set", Self.bridge(way), "up"])
      }
      for host in 0...1 { try join(host, way) }
    }
  }

  private func join(_ number: Int, _ way: Way) throws {
    let (port, host) = (Self.port(way, number), hosts[number])
    try network.inside(
      "ip", ["link", "add", port, "type", "veth", "peer", "name", "\(way)", "netns", host.name])
    try network.inside("ip", ["link", "set", port, "master", Self.bridge(way), "up"])
    guard way != .clients else {
      try host.inside("ip", ["link", "set", "\(way)", "master", "br0", "up"])
      return
    }
    try host.inside("ip", ["address", "add", "\(Self.address(way, number))/24", "dev", "\(way)"])
    try host.inside("ip", ["link", "set", "\(way)", "address", Self.link(way, number), "up"])
    // An address that is not answered for would be an error at once, and not silence.
    try host.inside(
      "ip",
      [
        "neighbour", "replace", Self.address(way, 1 - number), "lladdr", Self.link(way, 1 - number), "nud", "permanent",
        "dev", "\(way)",
      ])
  }

  /// The address of a host on the channel's or the beats' switch.
  public static func address(_ way: Way, _ host: Int) -> String { "10.\(way.rawValue).1.\(host + 1)" }

  /// Takes a host off a switch.
  public func cut(_ way: Way, of host: Int) throws {
    try network.inside("ip", ["link", "set", Self.port(way, host), "nomaster"])
  }

  public func restore(_ way: Way, of host: Int) throws {
    try network.inside("ip", ["link", "set", Self.port(way, host), "master", Self.bridge(way)])
  }

  private static func bridge(_ way: Way) -> String { way == .clients ? "br0" : "\(way)" }
  private static func port(_ way: Way, _ host: Int) -> String { "\(way)\(host)" }
  private static func link(_ way: Way, _ host: Int) -> String { "02:00:00:00:0\(way.rawValue):0\(host)" }
}
