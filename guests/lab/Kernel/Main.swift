import LabC

/// CPU 0 at CPL3, just entered (boot/start.S).
@c(lab_main)
func labMain(_ startInfo: UInt64) -> Never {
  let info = StartInfo(address: startInfo)
  CommandLine.text = info.commandLine
  if Services.wants("poweroff"), Services.isOnly("poweroff") {
    Interrupts.setUp()
    Machine.powerOff()
  }
  Arena.setUp(info)
  Interrupts.setUp()
  Clock.setUp()
  systemRandom = Random(seed: CommandLine.number("seed") ?? cpu_tsc())
  Processors.readMPTable()
  ActiveCPUs.setUp()
  Services.start()
  MainLoop.run()
}

/// CPU 0's life: poll the rings, run what is due, and sleep when there is nothing to do.
enum MainLoop {
  enum Polling { case always, adaptive, never }

  static func run() -> Never {
    let polling = pollingOption()
    let spin = CommandLine.number("spin_us", default: 50) * 1000
    let hasNetwork = Interface.isUp
    var lastWork = Clock.now
    var nextTimeouts: UInt64 = 0
    while true {
      var worked = false
      if hasNetwork {
        worked = Interface.poll(budget: 64)
        let now = Clock.now
        if now >= nextTimeouts {
          sys_check_timeouts()
          nextTimeouts = now + 10_000_000
        }
      }
      if Services.poll() { worked = true }
      ActiveCPUs.poll()
      if hasNetwork { Interface.flush() }
      if worked || polling == .always {
        if worked, polling == .adaptive { lastWork = Clock.now } else { cpu_pause() }
        continue
      }
      if polling == .adaptive, Clock.now < lastWork + spin {
        cpu_pause()
        continue
      }
      sleep(hasNetwork)
      nextTimeouts = 0
    }
  }

  private static func sleep(_ hasNetwork: Bool) {
    Interrupts.prepareToIdle(cpu: 0)
    let quiet = (!hasNetwork || Interface.arm()) && Services.arm()
    if quiet { Interrupts.idle(nanoseconds: longestSleep(hasNetwork)) }
    if hasNetwork { Interface.disarm() }
    Services.disarm()
  }

  /// Until the next lwIP timer or what a service has to do; nil: until an interrupt.
  private static func longestSleep(_ hasNetwork: Bool) -> UInt64? {
    var nanoseconds = Services.longestSleep
    if hasNetwork {
      let milliseconds = sys_timeouts_sleeptime()
      if milliseconds != UInt32.max {
        nanoseconds = min(nanoseconds ?? UInt64.max, max(UInt64(milliseconds), 1) * 1_000_000)
      }
    }
    return nanoseconds
  }

  private static func pollingOption() -> Polling {
    guard let option = CommandLine.value("poll") else { return .adaptive }
    if option.equals("always") { return .always }
    return option.equals("never") ? .never : .adaptive
  }
}
