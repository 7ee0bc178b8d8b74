import LabC

/// What the guest does, as `service=a,b,…` says. Services that serve (echo, kv, bulk, journal, dial, dirty, idle) start first; those
/// that end (disk, burn, exits, walk, hostile) then run one after another in the order given, beside the serving ones, and so do
/// poweroff, reset, crash and panic. With nothing that serves, the guest powers off after the last one.
enum Services {
  nonisolated(unsafe) private static var rest = Bytes(start: emptyBytes, count: 0)
  nonisolated(unsafe) private static var isServing = false
  nonisolated(unsafe) private static var isFinished = false

  static func wants(_ name: StaticString) -> Bool {
    guard var rest = CommandLine.value("service") else { return false }
    while let word = rest.next(separator: 0x2c) {
      if word.equals(name) { return true }
    }
    return false
  }

  static func isOnly(_ name: StaticString) -> Bool { CommandLine.value("service")?.equals(name) ?? false }

  static func start() {
    if let text = CommandLine.value("print") { Console.line { $0.bytes(text) } }
    rest = CommandLine.value("service") ?? rest
    isServing = rest.isEmpty || wants("idle")
    let serves =
      rest.isEmpty || wants("idle") || wants("echo") || wants("kv") || wants("bulk") || wants("journal")
      || wants("dial")
    let addressed = CommandLine.value("ip") != nil || CommandLine.value("ip6") != nil
    let network = serves && addressed && Interface.setUp()
    if network { startNetworkServices() }
    if wants("dirty") {
      Dirty.start()
      isServing = true
    }
    if wants("disk") { Disk.prepare() }
    if wants("kv"), network { KV.start() }  // last: it takes what RAM is left
    announce(network)
  }

  private static func startNetworkServices() {
    isServing = true
    if wants("echo") { Echo.start() }
    if wants("bulk") { Bulk.start() }
    if wants("dial") { Dial.start() }
    if wants("journal") { Journal.start() }
  }

  private static func announce(_ network: Bool) {
    Console.line {
      $0.text("lab: ready service=")
      if let service = CommandLine.value("service") { $0.bytes(service) }
      if network, let ip = CommandLine.value("ip") {
        $0.text(" ip=")
        $0.bytes(ip)
      }
      if network, let ip6 = CommandLine.value("ip6") {
        $0.text(" ip6=")
        $0.bytes(ip6)
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

  // MARK: Main loop

  /// One turn of every service that works in the main loop. True if there was something to do.
  static func poll() -> Bool {
    Store.collectLeaving()
    KV.poll()
    let disk = Disk.poll() || Journal.poll()
    let dirty = Dirty.poll()
    let burn = Burn.poll()
    if isFinished || Disk.isActive || Burn.isActive { return disk || dirty || burn }
    if let word = rest.next(separator: 0x2c) { return run(word) }
    isFinished = true
    if !isServing { Machine.powerOff() }
    return false
  }

  private static func run(_ word: Bytes) -> Bool {
    if word.equals("disk") {
      Disk.start()
    } else if word.equals("burn") {
      Burn.start()
    } else if word.equals("exits") {
      Exits.run()
    } else if word.equals("walk") {
      Walk.run()
    } else if word.equals("hostile") {
      Hostile.run()
    } else if word.equals("poweroff") {
      Machine.powerOff()
    } else if word.equals("reset") {
      Machine.reset()
    } else if word.equals("crash") {
      Machine.tripleFault()
    } else if word.equals("panic") {
      Machine.crashed()
    }
    return true
  }

  static func arm() -> Bool { Disk.arm() && Journal.arm() }

  static func disarm() {
    Disk.disarm()
    Journal.disarm()
  }

  static var longestSleep: UInt64? { Dirty.longestSleep }
}
