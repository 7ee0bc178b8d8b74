/// What the guest did to its machine as a whole.
public enum PowerEvent: Equatable, Sendable {
  case powerOff
  /// A reset through the keyboard controller.
  case reset
  /// The guest's own report of a panic.
  case guestCrash
}

/// Port 0x604, 2 bytes: a sleep-control register as ACPI machines have it. SLP_EN (bit 13) with sleep type 0 powers off.
/// Stateless.
public final class PowerControl: BusDevice {
  public static let port: UInt64 = 0x604
  public static let size: UInt64 = 2
  private let notify: @Sendable (PowerEvent) -> Void

  /// - Parameter notify: called on the vCPU thread that wrote; must not wait for that thread.
  public init(notify: @escaping @Sendable (PowerEvent) -> Void) { self.notify = notify }

  public func read(offset: UInt64, size: Int) -> UInt64 { 0 }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    if offset == 0, size == 2, value & 0xffff == 0x2000 { notify(.powerOff) }
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
