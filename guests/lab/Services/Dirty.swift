import LabC

/// `dirty=pages:256,rate:10000[,seconds:S][,report:R]`: writes a stamp to `rate` pages a second, round a working set.
/// Each page begins with "DIRTYPG!", its number, and how many pages had been written.
enum Dirty {
  private static let magic: UInt64 = 0x2147_5059_5452_4944
  private static let tick: UInt64 = 1_000_000

  nonisolated(unsafe) private static var memory = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var pages: UInt64 = 0
  nonisolated(unsafe) private static var rate: UInt64 = 0
  nonisolated(unsafe) private static var begin: UInt64 = 0
  nonisolated(unsafe) private static var end: UInt64 = 0
  nonisolated(unsafe) private static var reportEvery: UInt64 = 0
  nonisolated(unsafe) private static var nextReport: UInt64 = 0
  nonisolated(unsafe) private static var written: UInt64 = 0
  nonisolated(unsafe) private(set) static var isActive = false

  static func start() {
    let option = CommandLine.value("dirty") ?? Bytes(start: emptyBytes, count: 0)
    let most = Arena.free / 2 / 4096
    pages = min(max(CommandLine.part(option, "pages") ?? 256, 1), most)
    rate = min(CommandLine.part(option, "rate") ?? 10000, 100_000_000)
    memory = Arena.take(Int(pages) * 4096, alignment: 4096)
    begin = Clock.now
    end = CommandLine.part(option, "seconds").map { begin + $0 * 1_000_000_000 } ?? UInt64.max
    reportEvery = max(CommandLine.part(option, "report") ?? 5, 1) * 1_000_000_000
    nextReport = begin + reportEvery
    isActive = true
    Console.line {
      $0.text("dirty: pages=")
      $0.decimal(pages)
      $0.text(" rate=")
      $0.decimal(rate)
      $0.text(" at=")
      $0.hex(address(memory))
    }
  }

  static func poll() -> Bool {
    guard isActive else { return false }
    let now = Clock.now
    let due = (min(now, end) - begin) / 1000 * rate / 1_000_000
    var left = min(due > written ? due - written : 0, 4096)
    let behind = left == 4096
    while left > 0 {
      let page = written % pages
      let words = (memory + Int(page) * 4096).assumingMemoryBound(to: UInt64.self)
      words[0] = magic
      words[1] = page
      words[2] = written
      written += 1
      left -= 1
    }
    if now >= nextReport || now >= end { report(now) }
    if now >= end { isActive = false }
    return behind
  }

  private static func report(_ now: UInt64) {
    nextReport = now + reportEvery
    Console.line {
      $0.text("dirty: written=")
      $0.decimal(written)
      $0.text(" seconds=")
      $0.fixed((now - begin) / 1_000_000, places: 3)
    }
  }

  static var longestSleep: UInt64? { isActive ? tick : nil }
}
