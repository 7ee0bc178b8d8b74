internal import StateCodec

/// Which conversation a frame belongs to, as its sender names it: addresses, protocol, ports, VLAN.
///
/// The output of one guest has one key a direction, so the key of what comes back is its ``reversed``.
public struct FlowKey: Hashable, Sendable {
  /// An IPv6 address, or an IPv4 address in the low 32 bits of `low` (the version is in ``FlowKey/version``).
  public struct Address: Hashable, Sendable {
    public var high: UInt64
    public var low: UInt64

    public init(high: UInt64, low: UInt64) {
      self.high = high
      self.low = low
    }
  }

  public var source: Address
  public var destination: Address
  /// Ports of TCP and UDP. ICMP echo: type and code, and the identifier. Other ICMP: type and code, 0. Otherwise 0.
  public var sourcePort: UInt16
  public var destinationPort: UInt16
  /// The IP protocol number of what is compared.
  public var proto: UInt8
  /// 4 or 6.
  public var version: UInt8
  /// The VLAN of an 802.1Q tag, 0 for none.
  public var vlan: UInt16

  public init(
    source: Address, destination: Address, sourcePort: UInt16, destinationPort: UInt16, proto: UInt8, version: UInt8,
    vlan: UInt16
  ) {
    self.source = source
    self.destination = destination
    self.sourcePort = sourcePort
    self.destinationPort = destinationPort
    self.proto = proto
    self.version = version
    self.vlan = vlan
  }

  /// That of frames that belong to no conversation.
  public static let none = FlowKey(
    source: .init(high: 0, low: 0), destination: .init(high: 0, low: 0), sourcePort: 0, destinationPort: 0, proto: 0,
    version: 0, vlan: 0)

  /// The key of frames in the other direction. Only TCP and UDP have one.
  public var reversed: FlowKey {
    var key = self
    (key.source, key.destination) = (destination, source)
    (key.sourcePort, key.destinationPort) = (destinationPort, sourcePort)
    return key
  }

  @inline(__always) private var rest: UInt64 {
    UInt64(sourcePort) << 48 | UInt64(destinationPort) << 32 | UInt64(proto) << 24 | UInt64(version) << 16
      | UInt64(vlan)
  }

  @inline(__always) public static func == (a: FlowKey, b: FlowKey) -> Bool {
    (a.rest ^ b.rest) | (a.source.low ^ b.source.low) | (a.destination.low ^ b.destination.low)
      | (a.source.high ^ b.source.high) | (a.destination.high ^ b.destination.high) == 0
  }

  // The guest chooses its keys: the standard hasher is seeded a process, so that it cannot choose collisions.
  public func hash(into hasher: inout Hasher) {
    hasher.combine(rest)
    hasher.combine(source.low)
    hasher.combine(destination.low)
    if version == 6 {
      hasher.combine(source.high)
      hasher.combine(destination.high)
    }
  }
}

extension FlowKey {
  func put(into out: inout StateWriter) {
    out.put(source.high)
    out.put(source.low)
    out.put(destination.high)
    out.put(destination.low)
    out.put(sourcePort)
    out.put(destinationPort)
    out.put(proto)
    out.put(version)
    out.put(vlan)
  }

  init(from reader: inout StateReader) throws(StateError) {
    let source = Address(high: try reader.get(), low: try reader.get())
    let destination = Address(high: try reader.get(), low: try reader.get())
    self.init(
      source: source, destination: destination, sourcePort: try reader.get(), destinationPort: try reader.get(),
      proto: try reader.get(), version: try reader.get(), vlan: try reader.get())
  }
}
