internal import Devices

/// The devices every machine has, whatever the caller adds.
struct Platform: Sendable {
  private let power: PowerControl
  private let panicNotifier: PanicNotifier
  private let keyboardController: I8042
  private let clock = RTC()

  init(end: @escaping @Sendable (MachineEnd) -> Void) {
    let notify: @Sendable (PowerEvent) -> Void = { event in
      switch event {
      case .powerOff: end(.poweroff)
      case .reset: end(.reset(.keyboardController))
      case .guestCrash: end(.guestCrash(.panicNotifier))
      }
    }
    power = PowerControl(notify: notify)
    panicNotifier = PanicNotifier(notify: notify)
    keyboardController = I8042(notify: notify)
  }

  /// Those with state.
  var devices: [any MachineDevice] { [keyboardController, clock] }

  func added(to bus: Bus) throws(MachineError) -> Bus {
    var bus = bus
    let windows: [(any BusDevice, UInt64, UInt64)] = [
      (power, PowerControl.port, PowerControl.size), (panicNotifier, PanicNotifier.port, PanicNotifier.size),
      (keyboardController, I8042.port, I8042.size), (clock, RTC.port, RTC.size),
    ]
    for (device, port, size) in windows where !bus.add(device, at: port, size: size) { throw .portTaken(port) }
    return bus
  }
}
