/// A device that answers reads and writes of its window. Called on vCPU threads, from several at once.
public protocol BusDevice: AnyObject, Sendable {
  /// Reads `size` bytes (1, 2, 4 or 8) at `offset` in the window; what does not exist reads as all ones.
  func read(offset: UInt64, size: Int) -> UInt64
  /// Writes the low `size` bytes of `value`; what does not exist ignores it.
  func write(offset: UInt64, size: Int, value: UInt64)
}

/// Windows of one address space (port I/O or MMIO), fixed before the first vCPU runs.
public struct Bus: Sendable {
  public struct Window: Sendable {
    public let start: UInt64
    public let size: UInt64
    public let device: any BusDevice
  }

  public private(set) var windows: [Window] = []

  public init() {}

  /// Adds a window; false when it is empty, wraps, or overlaps another.
  public mutating func add(_ device: any BusDevice, at start: UInt64, size: UInt64) -> Bool {
    let (end, wraps) = start.addingReportingOverflow(size)
    guard size > 0, !wraps, !windows.contains(where: { start < $0.start + $0.size && $0.start < end })
    else { return false }
    windows.append(Window(start: start, size: size, device: device))
    return true
  }

  /// An access that does not lie wholly inside one window reads as all ones.
  @inline(__always)
  public func read(at address: UInt64, size: Int) -> UInt64 {
    for window in windows where address >= window.start && address - window.start < window.size {
      guard UInt64(size) <= window.size - (address - window.start) else { break }
      return window.device.read(offset: address - window.start, size: size)
    }
    return size == 8 ? ~0 : (1 << UInt64(size * 8)) - 1
  }

  @inline(__always)
  public func write(at address: UInt64, size: Int, value: UInt64) {
    for window in windows where address >= window.start && address - window.start < window.size {
      guard UInt64(size) <= window.size - (address - window.start) else { return }
      window.device.write(offset: address - window.start, size: size, value: value)
      return
    }
  }
}
