import LabC

/// `walk=mib:1024[,steps:10000000]`: what memory costs that the host has yet to give, and memory that its processors have to find. Writes
/// to each page of 4 KiB once; then reads cache lines all over, each of which says where the next one is.
enum Walk {
  static func run() {
    let option = CommandLine.value("walk") ?? Bytes(start: emptyBytes, count: 0)
    let size = min((CommandLine.part(option, "mib") ?? 1024) << 20, Arena.free & ~4095)
    let steps = max(CommandLine.part(option, "steps") ?? 10_000_000, 1)
    let memory = Arena.take(Int(size), alignment: 4096)
    var before = Clock.now
    for page in 0..<size / 4096 { memory.storeBytes(of: page, toByteOffset: Int(page * 4096), as: UInt64.self) }
    let touch = Clock.now - before
    let lines = size / 64
    var x: UInt64 = 1
    before = Clock.now
    for _ in 0..<steps {
      let line = ((x >> 32) &* lines) >> 32
      x = x &* 0x5851_f42d_4c95_7f2d &+ 1 &+ memory.load(fromByteOffset: Int(line &* 64), as: UInt64.self)
    }
    let walk = Clock.now - before
    Console.line {
      $0.text("walk: mib=")
      $0.decimal(size >> 20)
      $0.text(" touch_us=")
      $0.decimal(touch / 1000)
      $0.text(" step_ps=")
      $0.decimal(walk * 1000 / steps)
      $0.text(" end=")
      $0.hex(x)
    }
  }
}
