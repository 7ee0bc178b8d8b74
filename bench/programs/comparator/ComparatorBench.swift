// What comparing costs on one core: the primary's and the secondary's frames, equal, cut alike or not.
// `swift run -c release comparator-bench [seconds a case] [file of capture.py's]…`. A packet is one frame of the primary with its
// counterpart.
import Glibc
import Replication

@main struct ComparatorBench {
  struct Case {
    let name: String
    let payload: Int
    let connections: Int
    /// The secondary sends as much in segments of another size: offload on one side only.
    var secondaryPayload: Int? = nil
    /// How far the primary is ahead, in frames.
    var lead = 1
    var isDatagram = false
  }

  static let cases = [
    Case(name: "tcp-1448", payload: 1448, connections: 1),
    Case(name: "tcp-1448-lead-64", payload: 1448, connections: 1, lead: 64),
    Case(name: "tcp-1448-1000-connections", payload: 1448, connections: 1000),
    Case(name: "tcp-14480-against-1448", payload: 14480, connections: 1, secondaryPayload: 1448),
    Case(name: "tcp-64", payload: 64, connections: 1),
    Case(name: "tcp-64-1000-connections", payload: 64, connections: 1000),
    Case(name: "udp-64-1000-flows", payload: 64, connections: 1000, isDatagram: true),
  ]

  static func main() {
    let seconds = CommandLine.arguments.dropFirst().first.flatMap { Double($0) } ?? 1
    for entry in cases { run(entry, seconds: seconds) }
    runMapper(seconds: seconds)
    for path in CommandLine.arguments.dropFirst(2) { runCapture(path, seconds: seconds) }
  }

  /// What a real guest has sent, by both sides alike, a burst of 32 frames of the primary's before the secondary's.
  static func runCapture(_ path: String, seconds: Double) {
    guard let file = unsafe fopen(path, "rb") else { return print("\(path): cannot be read") }
    defer { unsafe fclose(file) }
    var frames: [[UInt8]] = []
    var size: UInt32 = 0
    while unsafe fread(&size, 4, 1, file) == 1, size < 1 << 20 {
      var frame = [UInt8](repeating: 0, count: Int(size))
      guard unsafe fread(&frame, frame.count, 1, file) == 1 else { break }
      frames.append(frame)
    }
    var (sent, bytes, elapsed) = (0, 0, 0.0)
    let clock = ContinuousClock()
    while elapsed < seconds, !frames.isEmpty {
      // Sequence numbers begin anew with each turn, and so does what is known of them.
      var comparator = Comparator()
      var equal = 0
      let begin = clock.now
      for start in stride(from: 0, to: frames.count, by: 32) {
        let burst = frames[start..<min(start + 32, frames.count)]
        for frame in burst { check(comparator.primary(frame.span, token: 0)) }
        for frame in burst { check(comparator.secondary(frame.span)) }
        while comparator.nextEqual() != nil { equal += 1 }
      }
      elapsed += (clock.now - begin) / .seconds(1)
      precondition(equal == frames.count, "not all were found equal")
      sent += frames.count
      bytes += frames.reduce(0) { $0 + $1.count }
    }
    let name = path.split(separator: "/").last.map(String.init) ?? path
    report(name, packets: sent, bytes: bytes, seconds: max(elapsed, 1e-9))
  }

  /// Frames of IPv4 of the right lengths; checksums are not looked at.
  static func frame(payload: Int, isDatagram: Bool) -> [UInt8] {
    let header = isDatagram ? 8 : 32
    var bytes = [UInt8](repeating: 0x61, count: 34 + header + payload)
    bytes.replaceSubrange(12..<24, with: [8, 0, 0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, isDatagram ? 17 : 6])
    store16(UInt16(20 + header + payload), at: 16, &bytes)
    if isDatagram {
      store16(UInt16(8 + payload), at: 38, &bytes)
    } else {
      bytes[46] = 0x80
      bytes[47] = 0x10
      bytes.replaceSubrange(54..<66, with: [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1])
    }
    return bytes
  }

  static func store16(_ value: UInt16, at offset: Int, _ bytes: inout [UInt8]) {
    bytes[offset] = UInt8(value >> 8)
    bytes[offset + 1] = UInt8(truncatingIfNeeded: value)
  }

  static func address(_ connection: Int, sequence: UInt32, isDatagram: Bool, _ bytes: inout [UInt8]) {
    store16(UInt16(1024 + connection), at: 36, &bytes)
    if isDatagram { return }
    store16(UInt16(sequence >> 16), at: 38, &bytes)
    store16(UInt16(truncatingIfNeeded: sequence), at: 40, &bytes)
  }

  static func run(_ entry: Case, seconds: Double) {
    var comparator = Comparator()
    let small = entry.secondaryPayload ?? entry.payload
    var primary = frame(payload: entry.payload, isDatagram: entry.isDatagram)
    var secondary = frame(payload: small, isDatagram: entry.isDatagram)
    var sent = 0
    var matched = 0
    var equal = 0
    let clock = ContinuousClock()
    let begin = clock.now
    var elapsed = 0.0
    while elapsed < seconds {
      for _ in 0..<4096 / entry.lead {
        for _ in 0..<entry.lead {
          let sequence = UInt32(truncatingIfNeeded: sent / entry.connections * entry.payload)
          address(sent % entry.connections, sequence: sequence, isDatagram: entry.isDatagram, &primary)
          check(comparator.primary(primary.span, token: UInt64(sent)))
          sent += 1
        }
        for _ in 0..<entry.lead {
          for part in 0..<entry.payload / small {
            let sequence = UInt32(truncatingIfNeeded: matched / entry.connections * entry.payload + part * small)
            address(matched % entry.connections, sequence: sequence, isDatagram: entry.isDatagram, &secondary)
            check(comparator.secondary(secondary.span))
          }
          matched += 1
        }
        while comparator.nextEqual() != nil { equal += 1 }
      }
      elapsed = (clock.now - begin) / .seconds(1)
    }
    precondition(equal == sent, "not all were found equal")
    report(entry.name, packets: sent, bytes: sent * entry.payload, seconds: elapsed)
  }

  static func check(_ outcome: ComparisonOutcome) { precondition(outcome == .consistent, "not consistent") }

  /// Frames of a mapped connection in both directions.
  static func runMapper(seconds: Double) {
    var mapper = SequenceMapper()
    var bytes = frame(payload: 1448, isDatagram: false)
    address(0, sequence: 100, isDatagram: false, &bytes)
    bytes[47] = 0x12
    _ = mapper.primaryOutput(bytes.span, epoch: 1)
    address(0, sequence: 900, isDatagram: false, &bytes)
    var packets = 0
    let clock = ContinuousClock()
    let begin = clock.now
    var elapsed = 0.0
    while elapsed < seconds {
      for _ in 0..<4096 {
        var span = bytes.mutableSpan
        _ = mapper.outgoing(&span, isPartial: false)
        bytes[47] = 0x10
      }
      packets += 4096
      elapsed = (clock.now - begin) / .seconds(1)
    }
    report("map-outgoing-1448", packets: packets, bytes: packets * 1448, seconds: elapsed)
  }

  static func report(_ name: String, packets: Int, bytes: Int, seconds: Double) {
    let rate = Int(Double(packets) / seconds)
    let gigabits = Double(bytes) * 8 / seconds / 1e9
    print("\(name): \(rate) packets/s, \((gigabits * 100).rounded() / 100) Gb/s")
  }
}
