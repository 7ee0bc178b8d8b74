import LabC

/// CPU 0 at CPL3, just entered (boot/start.S).
@c(lab_main)
func labMain(_ startInfo: UInt64) -> Never {
  let info = StartInfo(address: startInfo)
  CommandLine.text = info.commandLine
  Arena.setUp(info)
  Interrupts.setUp()
  Clock.setUp()
  systemRandom = Random(seed: CommandLine.number("seed") ?? cpu_tsc())
  Processors.readMPTable()
  Console.line {
    $0.text("lab: test cpus=")
    $0.decimal(UInt64(Processors.count))
    $0.text(" khz=")
    $0.decimal(Clock.kiloHertz)
    $0.text(" ram=")
    $0.decimal(Arena.free >> 20)
    $0.text(" cmd=")
    $0.bytes(CommandLine.text)
  }
  let a = Ring0.call(.readTSC)
  let b = cpu_tsc()
  let c = Ring0.call(.readTSC)
  Console.line {
    $0.text("tsc ")
    $0.decimal(a); $0.text(" "); $0.decimal(b); $0.text(" ")
    $0.decimal(c)
    $0.text(" now ")
    $0.decimal(Clock.now)
  }
  Processors.startAll()
  Console.line {
    $0.text("started ")
    $0.decimal(UInt64(Processors.started))
  }
  let t = Clock.now
  Interrupts.prepareToIdle(cpu: 0)
  Interrupts.idle(nanoseconds: 50_000_000)
  let u = Clock.now - t
  Console.line {
    $0.text("slept ns ")
    $0.decimal(u)
    $0.text(" ints ")
    $0.decimal(Interrupts.count(cpu: 0))
  }
  Machine.powerOff()
}
