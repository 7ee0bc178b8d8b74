import Pair
import Replication

/// A status reply for people.
enum StatusText {
  static func lines(_ reply: ControlReply) -> [String] {
    var rows: [(String, String)] = [("state", reply.state ?? "unknown")]
    if let cpus = reply.cpus, let memory = reply.memoryBytes {
      rows.append(("machine", "\(cpus) CPU\(cpus == 1 ? "" : "s"), \(bytes(memory))"))
    }
    if let pair = reply.pair { rows += pairRows(pair) }
    for device in reply.devices ?? [] {
      let facts = (device.counters.merging(device.mistakes.map { ("mistake \($0)", $1) }) { $1 }).filter { $1 > 0 }
      let texts =
        (device.backend.map { ["backend \($0)"] } ?? [])
        + facts.sorted { $0.key < $1.key }.map { "\($0.key) \($0.value)" }
      if !texts.isEmpty { rows.append((device.name, texts.joined(separator: ", "))) }
    }
    let width = rows.map(\.0.count).max() ?? 0
    return rows.map { name, text in name + String(repeating: " ", count: width - name.count + 2) + text }
  }

  static func pairRows(_ pair: PairStatus) -> [(String, String)] {
    var rows = [("role", "\(pair.role.rawValue)\(pair.mode.map { ", \($0.rawValue)" } ?? ""), term \(pair.term)")]
    if let notice = pair.notice { rows.append(("notice", notice)) }
    if let epoch = pair.epoch {
      rows.append(("epoch", "\(epoch), received \(pair.received ?? 0), loaded \(pair.loaded)"))
    } else {
      rows.append(("loaded", "checkpoint \(pair.loaded)"))
    }
    if let signs = pair.signs {
      func ago(_ milliseconds: Double?) -> String { milliseconds.map { "\(Int($0)) ms ago" } ?? "never" }
      let text = "channel \(ago(signs.channelMilliseconds)), beats \(ago(signs.beatsMilliseconds))"
      rows.append(("signs of life", text))
    }
    if let active = pair.activeCPUs { rows.append(("active CPUs", "\(active)")) }
    if let copying = pair.copying { rows.append(("first copy", "\(Int(copying * 100)) %")) }
    if let causes = pair.checkpoints { rows.append(("checkpoints", counts(causes))) }
    if let pauses = pair.pauseMicroseconds { rows.append(("pauses", times(pauses))) }
    if let pages = pair.dirtyPages {
      rows.append(("dirty pages", "last \(pages.last), p50 \(pages.p50), p99 \(pages.p99), max \(pages.max)"))
    }
    if let received = pair.receiveMicroseconds { rows.append(("received after", times(received))) }
    rows.append(("loaded within", times(pair.loadMicroseconds)))
    if let lag = pair.lagMicroseconds { rows.append(("input lag", times(lag))) }
    if let held = pair.held {
      let now = "\(held.frames) frames, \(bytes(held.bytes)), oldest \(time(held.oldestMicroseconds))"
      rows.append(("held now", now))
      let left = "\(held.atOnce) at once, \(held.early) early, \(held.equal) equal, \(held.checkpointed) by checkpoints"
      rows.append(("let out", left + ", \(held.refused) refused, \(held.contradicted) contradicted"))
    }
    if let held = pair.heldMicroseconds { rows.append(("held for", times(held))) }
    if let why = pair.notEarly, why.unmarked + why.changed + why.unknown + why.refused + why.unsought > 0 {
      let made = "\(why.unmarked) unmarked, \(why.changed) made of what has changed, \(why.unknown) not known yet"
      rows.append(("not early", made + ", \(why.refused) refused, \(why.unsought) not looked at"))
    }
    if let why = pair.earlyAwaited, why.input + why.earlier + why.checkpoint + why.distrusted > 0 {
      let others = "\(why.earlier) earlier output, \(why.checkpoint) a checkpoint, \(why.distrusted) after a difference"
      rows.append(("early after", "\(why.input) awaited input, " + others))
    }
    if let compared = pair.comparator {
      let frames = "\(compared.primaryFrames) and \(compared.secondaryFrames) frames"
      rows.append(("compared", frames + ", \(compared.mismatches) mismatches, \(compared.overflows) overflows"))
    }
    if let sent = pair.bytesSent { rows.append(("sent", bytes(sent))) }
    if let frames = pair.inputFrames { rows.append(("input", "\(frames) frames")) }
    if let pages = pair.pagesRolledBack { rows.append(("rolled back", "\(pages) pages")) }
    if let shrinks = pair.shrinkMicroseconds { rows.append(("shrunk within", times(shrinks))) }
    if let survivor = pair.survivor, survivor.equal + survivor.reset > 0 {
      rows.append(("told before", "\(survivor.equal) pieces said alike, \(survivor.reset) connections reset"))
    }
    if let ends = pair.ownEnds, ends > 0 { rows.append(("guest ended here", "\(ends) times, put back each time")) }
    return rows
  }

  /// `12, 10 period, 2 mismatch`
  static func counts(_ causes: [String: UInt64]) -> String {
    let parts = causes.filter { $0.value > 0 }.sorted { $0.key < $1.key }.map { "\($0.value) \($0.key)" }
    return (["\(causes.values.reduce(0, +))"] + parts).joined(separator: ", ")
  }

  private static func times(_ times: PairStatus.Times) -> String {
    times.count == 0 ? "none yet" : "p50 \(time(times.p50)), p99 \(time(times.p99)), max \(time(times.max))"
  }

  static func time(_ microseconds: Double) -> String {
    if microseconds < 1000 { return "\(Int(microseconds.rounded())) µs" }
    if microseconds < 1_000_000 { return "\(tenths(microseconds / 1000)) ms" }
    return "\(tenths(microseconds / 1_000_000)) s"
  }

  static func bytes(_ count: UInt64) -> String {
    if count < 1 << 10 { return "\(count) B" }
    if count < 1 << 20 { return "\(tenths(Double(count) / 1024)) KiB" }
    if count < 1 << 30 { return "\(tenths(Double(count) / 1_048_576)) MiB" }
    return "\(tenths(Double(count) / 1_073_741_824)) GiB"
  }

  private static func tenths(_ value: Double) -> String {
    let rounded = (value * 10).rounded() / 10
    return rounded == rounded.rounded() ? "\(Int(rounded))" : "\(rounded)"
  }
}
