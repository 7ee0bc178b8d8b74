public import StateCodec

/// What the two sides of a pair say to each other, in the order and within the limits of docs/protocol.md. Numbers are
/// little-endian; byte strings are preceded by their length (4 bytes).
public enum Message: Equatable, Sendable {
  /// Primary: the term in which it serves, and what the machine is made of; opaque here. The first message.
  case configuration(term: UInt64, description: [UInt8])
  /// Primary: frame `number` from the wire, with its virtio-net header. Counted from 1.
  case input(card: UInt8, number: UInt64, frame: [UInt8])
  /// Secondary: it has so many frames of input.
  case inputAcknowledged(card: UInt8, count: UInt64)
  /// Secondary: what its guest has sent since it loaded checkpoint `base`.
  case output(card: UInt8, base: UInt64, frame: [UInt8])
  /// Primary: a change of a disk in epoch `epoch`; in 0 while the disk is copied before the first checkpoint. An empty write
  /// is a discard or, with `zero`, zeros.
  case disk(index: UInt8, epoch: UInt64, position: UInt64, count: UInt64, zero: UInt8, bytes: [UInt8])
  /// Primary: pages of checkpoint `epoch`, coded by ``PageRun``.
  case pages(epoch: UInt64, run: [UInt8])
  /// Primary: the rest of checkpoint `epoch`, which ends here: machine state, and how many frames of input each card had
  /// been given, which sequence numbers are mapped (``SequenceMapper/encoded``), whose addresses the card has
  /// (``CardAddresses/encoded``), and what clients may see only after it
  /// (``OutputGate/held(frames:bytes:)``). With the count of pages, so that none is missed; and how long output that did not
  /// leave at once or early was held since the last one, in microseconds, on average; and whether it looks for output that may
  /// leave early in the epoch that begins.
  case checkpoint(
    epoch: UInt64, pages: UInt64, given: [UInt64], mappings: [UInt8], addresses: [UInt8], held: [[UInt8]], wait: UInt32,
    search: EarlySearch, state: [UInt8])
  /// Secondary: it holds checkpoint `epoch` whole.
  case received(epoch: UInt64)
  /// Secondary: its machine stands on checkpoint `epoch`, which took so long.
  case loaded(epoch: UInt64, nanoseconds: UInt64)
  /// Either: a sign of life. With the primary's clock, monotonic nanoseconds; the secondary gives back what it heard last.
  case heartbeat(term: UInt64, time: UInt64)
  /// Primary: the guest has ended, or (not `guestEnded`) it goes on without this secondary, which it took for dead. Either
  /// way there is nothing to take over.
  case farewell(guestEnded: Bool)
  /// Primary: its guest has begun a connection in `epoch`, by this SYN frame with its virtio-net header.
  case started(card: UInt8, epoch: UInt64, frame: [UInt8])
  /// Secondary: it follows this primary, or (with a reason) it does not. The first message. A term is that in which the same
  /// guest is served by another; 0 where that is not so.
  case admission(refusal: String, term: UInt64)
  /// Primary: somebody wants the secondary to take over now.
  case takeOver
  /// Primary: this is about to leave in `epoch`, before the secondary has said as much.
  case early(card: UInt8, epoch: UInt64, outputs: [EarlyOutput])
  /// Primary: this does not leave `epoch` before the secondary has said as much.
  case ask(card: UInt8, epoch: UInt64, output: AskedOutput)
  /// Secondary: what its guest has sent since it loaded checkpoint `base`, by its code.
  case piece(card: UInt8, base: UInt64, piece: EarlyOutput, acknowledgement: UInt32)
  /// Secondary: its guest, since it loaded checkpoint `base`, has said something else in this flow than was told early.
  case contradicted(card: UInt8, base: UInt64, flow: FlowKey)
}

/// The messages that carry a frame, which are many.
public enum FrameMessage: UInt8, Sendable {
  case input = 2
  case output = 4
  case started = 12

  /// The message up to the frame's bytes.
  func head(card: UInt8, number: UInt64, count: Int) -> [UInt8] {
    var out = StateWriter()
    out.put(rawValue)
    out.put(card)
    out.put(number)
    out.put(UInt32(count))
    return out.bytes
  }
}

extension Message {
  /// Longest encoded message, in bytes: what a peer may make us allocate.
  public static let limit = 32 << 20

  private var kind: UInt8 {
    switch self {
    case .configuration: 1
    case .input: 2
    case .inputAcknowledged: 3
    case .output: 4
    case .disk: 5
    case .pages: 6
    case .checkpoint: 7
    case .received: 8
    case .loaded: 9
    case .heartbeat: 10
    case .farewell: 11
    case .started: 12
    case .admission: 13
    case .takeOver: 14
    case .early: 15
    case .ask: 16
    case .contradicted: 17
    case .piece: 18
    }
  }

  public var encoded: [UInt8] {
    var out = StateWriter()
    out.put(kind)
    switch self {
    case .configuration(let term, let description):
      out.put(term)
      out.put(description)
    case .input(let card, let number, let frame), .output(let card, let number, let frame),
      .started(let card, let number, let frame):
      out.put(card)
      out.put(number)
      out.put(frame)
    case .inputAcknowledged(let card, let count):
      out.put(card)
      out.put(count)
    case .disk(let index, let epoch, let position, let count, let zero, let bytes):
      out.put(index)
      out.put(epoch)
      out.put(position)
      out.put(count)
      out.put(zero)
      out.put(bytes)
    case .pages(let epoch, let run):
      out.put(epoch)
      out.put(run)
    case .checkpoint(
      let epoch, let pages, let given, let mappings, let addresses, let held, let wait, let search, let state):
      out.put(epoch)
      out.put(pages)
      out.put(UInt8(given.count))
      for count in given { out.put(count) }
      out.put(mappings)
      out.put(addresses)
      out.put(UInt32(held.count))
      for frame in held { out.put(frame) }
      out.put(wait)
      out.put(search.rawValue)
      out.put(state)
    case .received(let epoch): out.put(epoch)
    case .loaded(let epoch, let nanoseconds):
      out.put(epoch)
      out.put(nanoseconds)
    case .heartbeat(let term, let time):
      out.put(term)
      out.put(time)
    case .farewell(let guestEnded): out.put(guestEnded)
    case .admission(let refusal, let term):
      out.put(Array(refusal.utf8))
      out.put(term)
    case .takeOver: break
    case .early(let card, let epoch, let outputs):
      out.put(card)
      out.put(epoch)
      out.put(UInt32(outputs.count))
      for output in outputs { output.put(into: &out) }
    case .ask(let card, let epoch, let output):
      out.put(card)
      out.put(epoch)
      output.put(into: &out)
    case .contradicted(let card, let base, let flow):
      out.put(card)
      out.put(base)
      flow.put(into: &out)
    case .piece(let card, let base, let piece, let acknowledgement):
      out.put(card)
      out.put(base)
      piece.put(into: &out)
      out.put(acknowledgement)
    }
    return out.bytes
  }

  public init(decoding bytes: [UInt8]) throws(StateError) { try self.init(decoding: bytes[...]) }

  public init(decoding bytes: ArraySlice<UInt8>) throws(StateError) {
    var reader = StateReader(slice: bytes)
    let kind = try reader.get(UInt8.self)
    switch kind {
    case 1: self = .configuration(term: try reader.get(), description: try reader.get())
    case 2: self = .input(card: try reader.get(), number: try reader.get(), frame: try reader.get())
    case 3: self = .inputAcknowledged(card: try reader.get(), count: try reader.get())
    case 4: self = .output(card: try reader.get(), base: try reader.get(), frame: try reader.get())
    case 5:
      self = .disk(
        index: try reader.get(), epoch: try reader.get(), position: try reader.get(), count: try reader.get(),
        zero: try reader.get(), bytes: try reader.get())
    case 6: self = .pages(epoch: try reader.get(), run: try reader.get())
    case 7:
      let epoch = try reader.get(UInt64.self)
      let pages = try reader.get(UInt64.self)
      var given: [UInt64] = []
      for _ in 0..<(try reader.get(UInt8.self)) { given.append(try reader.get()) }
      let mappings: [UInt8] = try reader.get()
      let addresses: [UInt8] = try reader.get()
      var held: [[UInt8]] = []
      for _ in 0..<(try reader.get(UInt32.self)) { held.append(try reader.get()) }
      let wait: UInt32 = try reader.get()
      guard let search = EarlySearch(rawValue: try reader.get()) else { throw .invalid("a search of another kind") }
      self = .checkpoint(
        epoch: epoch, pages: pages, given: given, mappings: mappings, addresses: addresses, held: held, wait: wait,
        search: search, state: try reader.get())
    case 8: self = .received(epoch: try reader.get())
    case 9: self = .loaded(epoch: try reader.get(), nanoseconds: try reader.get())
    case 10: self = .heartbeat(term: try reader.get(), time: try reader.get())
    case 11: self = .farewell(guestEnded: try reader.get(Bool.self))
    case 12: self = .started(card: try reader.get(), epoch: try reader.get(), frame: try reader.get())
    case 13:
      self = .admission(refusal: String(decoding: try reader.get([UInt8].self), as: UTF8.self), term: try reader.get())
    case 14: self = .takeOver
    case 15:
      let card = try reader.get(UInt8.self)
      let epoch = try reader.get(UInt64.self)
      var outputs: [EarlyOutput] = []
      for _ in 0..<(try reader.get(UInt32.self)) { outputs.append(try EarlyOutput(from: &reader)) }
      self = .early(card: card, epoch: epoch, outputs: outputs)
    case 16:
      self = .ask(card: try reader.get(), epoch: try reader.get(), output: try AskedOutput(from: &reader))
    case 17: self = .contradicted(card: try reader.get(), base: try reader.get(), flow: try FlowKey(from: &reader))
    case 18:
      self = .piece(
        card: try reader.get(), base: try reader.get(), piece: try EarlyOutput(from: &reader),
        acknowledgement: try reader.get())
    default: throw .invalid("a message of kind \(kind)")
    }
    guard reader.remaining == 0 else { throw .invalid("\(reader.remaining) bytes behind a message of kind \(kind)") }
  }
}
