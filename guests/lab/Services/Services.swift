import LabC

/// What the guest does, as `service=a,b,…` says. Services that end run first, in the order given; those that serve go on
/// in the main loop; `poweroff`, `reset`, `crash` and `panic` come last.
enum Services {

  static func wants(_ name: StaticString) -> Bool {
    guard var rest = CommandLine.value("service") else { return false }
    while let word = rest.next(separator: 0x2c) {
      if word.equals(name) { return true }
    }
    return false
  }

  static func isOnly(_ name: StaticString) -> Bool { CommandLine.value("service")?.equals(name) ?? false }

  static func start() {
    let network = Interface.setUp()
    if network {
      if wants("echo") { Echo.start() }
      if wants("kv") { KV.start() }
    }
    announce(network)
  }

  private static func announce(_ network: Bool) {
    if isOnly("idle"), CommandLine.isOff("ready") { return }
    Console.line {
      $0.text("lab: ready service=")
      if let service = CommandLine.value("service") { $0.bytes(service) }
      if network, let ip = CommandLine.value("ip") {
        $0.text(" ip=")
        $0.bytes(ip)
      }
      $0.text(" cpus=")
      $0.decimal(UInt64(Processors.count))
      $0.text(" clock=")
      $0.text(Clock.source)
      $0.text(" tsc_khz=")
      $0.decimal(Clock.kiloHertz)
      $0.text(" ram_mib=")
      $0.decimal((Arena.end + 0xfffff) >> 20)
    }
  }

  /// One turn of every service that works in the main loop. True if there was something to do.
  static func poll() -> Bool {
    Store.collectLeaving()
    return false
  }

  static func arm() -> Bool { true }

  static func disarm() {}

  static var longestSleep: UInt64? { nil }
}
