/// Which of a guest's last frames a takeover has to repeat: those of which the client has not shown that it got them.
public enum Repetition {
  /// - Parameters:
  ///   - sent: what the guest has sent since a checkpoint, oldest first, with `header` bytes in front.
  ///   - received: what has come for it since, alike.
  /// - Returns: places in `sent`, ascending. Frames that are no TCP are all among them. Of TCP's there are those that reach
  ///   beyond what the client has acknowledged, and the last bare acknowledgement of a connection that the client has not
  ///   ended: repeated to one that is over, it would be answered by a reset.
  public static func needed(sent: [[UInt8]], received: [[UInt8]], header: Int) -> [Int] {
    var ends: [FlowKey: UInt32] = [:]
    for bytes in sent where bytes.count > header {
      let frame = Frame(bytes.span.extracting(header...))
      guard frame.kind == .tcp else { continue }
      let end = frame.sequence &+ Self.length(frame)
      if ends[frame.key].map({ isAfter(end, $0) }) ?? true { ends[frame.key] = end }
    }
    var acknowledged: [FlowKey: UInt32] = [:]
    var ended: Set<FlowKey> = []
    for bytes in received where bytes.count > header {
      let frame = Frame(bytes.span.extracting(header...))
      guard frame.kind == .tcp else { continue }
      let key = frame.key.reversed
      if frame.flags.contains(.syn) { ended.remove(key) }
      if !frame.flags.isDisjoint(with: [.fin, .rst]) { ended.insert(key) }
      // What acknowledges more than was sent is not the client's.
      guard frame.flags.contains(.ack), let end = ends[key], !isAfter(frame.acknowledgement, end) else { continue }
      if let known = acknowledged[key], Int32(bitPattern: frame.acknowledgement &- known) < 0 { continue }
      acknowledged[key] = frame.acknowledgement
    }
    var needed: [Int] = []
    var seen: Set<FlowKey> = []
    for index in sent.indices.reversed() where sent[index].count > header {
      let bytes = sent[index]
      let frame = Frame(bytes.span.extracting(header...))
      guard frame.kind == .tcp else {
        needed.append(index)
        continue
      }
      let isLast = seen.insert(frame.key).inserted
      let length = Self.length(frame)
      if length == 0 {
        if isLast, !ended.contains(frame.key) { needed.append(index) }
      } else if let known = acknowledged[frame.key] {
        if Int32(bitPattern: frame.sequence &+ length &- known) > 0 { needed.append(index) }
      } else {
        needed.append(index)
      }
    }
    return needed.reversed()
  }

  /// Sequence numbers that a segment takes.
  private static func length(_ frame: Frame) -> UInt32 {
    UInt32(truncatingIfNeeded: frame.payload.count + (frame.flags.isDisjoint(with: [.syn, .fin]) ? 0 : 1))
  }

  /// Which frames a survivor's guest has to be given again: what left early has acknowledged them, whether or not this guest took
  /// them in, and their clients do not send them again.
  /// - Parameters:
  ///   - given: what the guest has been given since a checkpoint, with `header` bytes in front.
  ///   - acknowledged: how far it has acknowledged since, by the flow of its own frames; only flows of which something left early.
  /// - Returns: places in `given`, ascending: TCP's data and FIN beyond that. Given to a connection that is over it would be
  ///   answered by a reset, so that nothing comes again of which there is any doubt.
  public static func input(given: [[UInt8]], acknowledged: [FlowKey: UInt32?], header: Int) -> [Int] {
    var needed: [Int] = []
    for (index, bytes) in given.enumerated() where bytes.count > header {
      let frame = Frame(bytes.span.extracting(header...))
      guard frame.kind == .tcp, frame.flags.isDisjoint(with: [.syn, .rst]),
        let known = acknowledged[frame.key.reversed]
      else { continue }
      let length = UInt32(truncatingIfNeeded: frame.payload.count) &+ (frame.flags.contains(.fin) ? 1 : 0)
      guard length > 0 else { continue }
      if let known, Int32(bitPattern: frame.sequence &+ length &- known) <= 0 { continue }
      needed.append(index)
    }
    return needed
  }
}
