import ArgumentParser
import CLinux
import Glibc
import Pair
import Replication

struct WatchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "watch", abstract: "Show a running machine and its pair, second by second.",
    discussion: """
      On a terminal the status is shown anew each second; elsewhere it is one line a second. Ctrl-C ends it.

      EXAMPLES:
        minivmm watch --control /run/first.sock
        minivmm watch --control /run/first.sock --count 10 | tee pair.log
      """)

  @OptionGroup var machine: ControlOptions

  @Option(help: "End after so many.")
  var count: Int?

  func run() throws {
    if let count, count < 1 { throw ValidationError("--count \(count); give 1 or more") }
    let isTerminal = lx_isatty(1) == 1
    var before: ControlReply?
    var last = lx_monotonic_ns()
    var done = 0
    while true {
      let reply = try machine.ask(.status)
      let now = lx_monotonic_ns()
      let rates = Rates(before?.pair, reply.pair, seconds: Double(now - last) / 1e9)
      if isTerminal {
        // Home, each line to its end, and what is left below.
        var text = "\u{1b}[H"
        for line in StatusText.lines(reply) + rates.lines { text += line + "\u{1b}[K\n" }
        write(text + "\u{1b}[J")
      } else {
        write(([reply.state ?? "unknown"] + rates.words(reply.pair)).joined(separator: "  ") + "\n")
      }
      before = reply
      last = now
      done += 1
      if done == count { return }
      usleep(1_000_000)
    }
  }

  private func write(_ text: String) {
    let bytes = Array(text.utf8)
    _ = unsafe bytes.withUnsafeBytes { unsafe lx_write(1, $0.baseAddress, $0.count) }
  }

  /// What happened between two looks.
  private struct Rates {
    var checkpoints: [String: UInt64] = [:]
    var bytesPerSecond: UInt64 = 0
    /// Frames let out, by why they might leave.
    var output: [(why: String, count: UInt64)] = []

    init(_ before: PairStatus?, _ now: PairStatus?, seconds: Double) {
      guard let before, let now, seconds > 0 else { return }
      for (cause, count) in now.checkpoints ?? [:] {
        let old = before.checkpoints?[cause] ?? 0
        checkpoints[cause] = UInt64((Double(count - min(old, count)) / seconds).rounded())
      }
      let (old, new) = (before.bytesSent ?? 0, now.bytesSent ?? 0)
      bytesPerSecond = UInt64(Double(new - min(old, new)) / seconds)
      guard let held = now.held, let past = before.held else { return }
      for (why, new, old) in [
        ("at once", held.atOnce, past.atOnce), ("early", held.early, past.early), ("equal", held.equal, past.equal),
        ("by checkpoints", held.checkpointed, past.checkpointed),
      ] {
        let count = UInt64(Double(new - min(old, new)) / seconds)
        if count > 0 { output.append((why, count)) }
      }
    }

    var lines: [String] {
      [
        "", "each second: checkpoints \(StatusText.counts(checkpoints)); \(StatusText.bytes(bytesPerSecond)) sent",
        "frames let out: \(frames)",
      ]
    }

    private var frames: String {
      output.isEmpty ? "none" : output.map { "\($0.count) \($0.why)" }.joined(separator: ", ")
    }

    func words(_ pair: PairStatus?) -> [String] {
      guard let pair else { return ["unprotected"] }
      guard let epoch = pair.epoch else { return [pair.role.rawValue, "loaded \(pair.loaded)"] }
      var words = [pair.role.rawValue, "epoch \(epoch)", "checkpoints/s \(StatusText.counts(checkpoints))"]
      if let copying = pair.copying { words.append("first copy \(Int(copying * 100)) %") }
      if let pauses = pair.pauseMicroseconds { words.append("pause \(StatusText.time(pauses.p50))") }
      if let pages = pair.dirtyPages { words.append("dirty \(pages.last)") }
      if let held = pair.held { words.append("held \(held.frames) (\(StatusText.time(held.oldestMicroseconds)))") }
      words.append("out/s \(frames)")
      return words + ["\(StatusText.bytes(bytesPerSecond))/s"]
    }
  }
}
