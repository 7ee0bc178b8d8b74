import LabC

/// `exits=count:100000[,port:0x80][,mmio:N]`: the cost of an exit. Port writes loop in ring 0; register reads of the first
/// virtio window are done at CPL3.
enum Exits {
  static func run() {
    let option = CommandLine.value("exits") ?? Bytes(start: emptyBytes, count: 0)
    let count = max(CommandLine.part(option, "count") ?? 100_000, 1)
    let port = CommandLine.part(option, "port") ?? 0x80
    var before = Clock.now
    Ring0.call(.out8Loop, port & 0xffff, count)
    report("pio", count, Clock.now - before)
    guard let reads = CommandLine.part(option, "mmio"), reads > 0 else { return }
    guard let device = Discovery.first else {
      Console.line("exits: no virtio window")
      return
    }
    before = Clock.now
    for _ in 0..<reads { _ = device.read(MMIORegister.magicValue) }
    report("mmio", reads, Clock.now - before)
  }

  private static func report(_ kind: StaticString, _ count: UInt64, _ nanoseconds: UInt64) {
    Console.line {
      $0.text("exits: kind=")
      $0.text(kind)
      $0.text(" count=")
      $0.decimal(count)
      $0.text(" ns_each=")
      $0.decimal(nanoseconds / count)
    }
  }
}
