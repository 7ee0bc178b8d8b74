/// What the guest did to its machine as a whole.
public enum PowerEvent: Equatable, Sendable {
  case powerOff
  /// A reset through the keyboard controller.
  case reset
  /// The guest's own report of a panic.
  case guestCrash
}

/// Port 0x604, 4 bytes: registers that switch the machine off. Stateless.
///
/// - 0x604, 2 bytes: a PM1 control register as ACPI machines with fixed hardware have it. SLP_EN (bit 13) with sleep type 0
///   powers off.
/// - 0x606, 1 byte: the sleep control register of hardware-reduced ACPI (6.4, §4.8.3.7). SLP_EN (bit 5) with sleep type
///   ``offType`` powers off.
/// - 0x607, 1 byte: the sleep status register; nobody wakes up from being off.
public final class PowerControl: BusDevice {
  public static let port: UInt64 = 0x604
  public static let size: UInt64 = 4
  /// Offsets of the registers.
  public static let sleepControl: UInt64 = 2
  public static let sleepStatus: UInt64 = 3
  /// The sleep type, three bits, that the guest is told by `_S5`.
  public static let offType: UInt8 = 5
  private let notify: @Sendable (PowerEvent) -> Void

  /// - Parameter notify: called on the vCPU thread that wrote; must not wait for that thread.
  public init(notify: @escaping @Sendable (PowerEvent) -> Void) { self.notify = notify }

  public func read(offset: UInt64, size: Int) -> UInt64 { 0 }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    switch (offset, size, value) {
    case (0, 2, 0x2000), (Self.sleepControl, 1, UInt64(1 << 5 | Self.offType << 2)): notify(.powerOff)
    default: break
    }
  }
}

/// Port 0x505, 1 byte: the panic notifier (pvpanic). Reads tell which events can be reported: bit 0, a panic. Stateless.
public final class PanicNotifier: BusDevice {
  public static let port: UInt64 = 0x505
  public static let size: UInt64 = 1
  private let notify: @Sendable (PowerEvent) -> Void

  /// - Parameter notify: as for ``PowerControl``.
  public init(notify: @escaping @Sendable (PowerEvent) -> Void) { self.notify = notify }

  public func read(offset: UInt64, size: Int) -> UInt64 { 1 }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    if value & 1 != 0 { notify(.guestCrash) }
  }
}
