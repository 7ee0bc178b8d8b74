public import Devices
public import GuestMemory

/// What a machine is made of, as its owner asks for it: plain values, nothing opened.
public struct MachineDescription: Sendable {
  public struct Disk: Sendable {
    public var path: String
    public var readOnly: Bool
    /// Taken for a raw image whatever it holds; otherwise an image of another format is refused.
    public var isRaw: Bool
    /// Opened by the caller, such as one that replicates; path and mode are its own then.
    public var opened: (any Devices.Disk)?

    public init(path: String, readOnly: Bool = false, isRaw: Bool = false) {
      self.path = path
      self.readOnly = readOnly
      self.isRaw = isRaw
    }
  }

  public struct Card: Sendable {
    public enum Host: Sendable {
      case tap(String)
      /// A descriptor that is attached to a tap already; the machine takes it over.
      case tapDescriptor(Int32)
      case socket(String)
      /// A back end made by the caller, such as one that replicates, or a test's.
      case custom(any FrameBackend)
    }

    /// The address of a card that was given none.
    public static func defaultMAC(_ index: Int) -> [UInt8] {
      [0x52, 0x54, 0x00, 0x4d, 0x56, UInt8(truncatingIfNeeded: index)]
    }

    /// What is said of it when it has gone, or come back.
    static func notice(_ number: Int, _ host: Host, isThere: Bool) -> String {
      switch host {
      case .socket(let path):
        return isThere
          ? "net\(number): connected to \(path) again"
          : "net\(number): the peer at \(path) has gone; connecting again until it is back"
      case .tap(let name):
        return
          "net\(number): tap \(name) has gone, and the guest's network with it; make it again and start this machine again"
      case .tapDescriptor, .custom:
        return "net\(number): its tap has gone, and the guest's network on this host with it"
      }
    }

    public var host: Host
    /// Six bytes; nil for one derived from the card's number.
    public var mac: [UInt8]?

    public init(host: Host, mac: [UInt8]? = nil) {
      self.host = host
      self.mac = mac
    }
  }

  /// 1 to ``Machine/maximumCPUs``.
  public var cpus = 1
  /// RAM that can go back to a checkpoint (``GuestMemory/rollBack(_:)``): a secondary's.
  public var rollsBack = false
  /// RAM on the host's reserved huge pages; not together with ``rollsBack``.
  public var hugePages = false
  /// Bytes of guest RAM, a multiple of 4096; with ``hugePages`` of 2 MiB.
  public var memory: UInt64 = 128 << 20
  public var disks: [Disk] = []
  public var cards: [Card] = []
  /// Told what people should hear of while the machine runs, such as a tap that has gone. Device thread.
  public var tell: @Sendable (String) -> Void = { _ in }
  /// Where serial output goes; nil throws it away.
  public var console: (any ConsoleSink)?
  /// Whether, and by which mechanism, changed pages are tracked.
  public var dirtyTracking = DirtyTracking.none
  public var seccomp = SeccompMode.off
  /// What the process ends with when a filter is broken in mode kill.
  public var seccompExitCode: Int32 = 159

  public init() {}
}

/// Why a machine could not be put together.
public enum AssemblyError: Error, Sendable {
  case memory(GuestMemoryError)
  case disk(DiskError)
  case card(NetBackendError)
  case host(HostError)
  case machine(MachineError)
  case seccomp(SeccompError)
  case tooManyDevices(limit: Int)
}

extension AssemblyError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .memory(let error): "\(error)"
    case .disk(let error): "\(error)"
    case .card(let error): "\(error)"
    case .host(let error): "\(error)"
    case .machine(let error): "\(error)"
    case .seccomp(let error): "\(error)"
    case .tooManyDevices(let limit): "more than \(limit) devices; leave out some disks or network cards"
    }
  }
}
