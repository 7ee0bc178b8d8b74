internal import CLinux
public import StateCodec
internal import Synchronization

/// An 8250/16450 UART with a receive FIFO: the console (National Semiconductor PC16550D data sheet).
///
/// What the guest sends goes into a bounded ring that the device thread empties into ``ConsoleSink``. While the ring has no
/// room for a whole FIFO the transmitter reads as busy, as a slow line would; a guest that sends all the same loses bytes, counted.
public final class Serial8250: BusDevice, MachineDevice, EventHandler {
  public static let portCount: UInt64 = 8
  static let inputLimit = 1024
  static let outputLimit = 64 << 10
  /// Bytes that a driver sends whenever the transmitter is empty: a 16550's FIFO.
  static let fifoSize = 16

  public let name: String
  /// Bytes the guest sent into a full ring.
  public let lostOutput = AtomicCounter()
  private let line: InterruptLine
  private let outputWaits: CInt
  /// Readable when the guest has read input after ``receive(_:)`` had to refuse some.
  public let inputRoomDescriptor: CInt
  private let state: Mutex<State>

  private struct State {
    var interruptEnable: UInt8 = 0
    var lineControl: UInt8 = 0
    var modemControl: UInt8 = 0
    var scratch: UInt8 = 0
    var divisor: UInt16 = 12
    var fifoEnabled = false
    /// The transmitter-empty interrupt is pending.
    var transmitInterrupt = false
    var input: [UInt8] = []
    var inputRefused = false
    var output: [UInt8] = []
    var sink: (any ConsoleSink)?
    var loop: EventLoop?
    var sinkSource: EventLoop.Source?

    /// THRE: the driver may send a FIFO's worth.
    var isTransmitterEmpty: Bool { output.count + Serial8250.fifoSize <= Serial8250.outputLimit }
  }

  private enum InterruptEnable {
    static let received: UInt8 = 1
    static let transmitterEmpty: UInt8 = 2
  }

  private enum LineStatus {
    static let dataReady: UInt8 = 0x01
    static let transmitterEmpty: UInt8 = 0x60
  }

  private static let outputTag: UInt32 = 0
  private static let sinkTag: UInt32 = 1

  public init(name: String = "serial0", line: InterruptLine) throws(HostError) {
    self.name = name
    self.line = line
    outputWaits = lx_eventfd(0)
    inputRoomDescriptor = lx_eventfd(0)
    state = Mutex(State())
    guard outputWaits >= 0, inputRoomDescriptor >= 0 else {
      throw HostError(operation: "eventfd", errno: -min(outputWaits, inputRoomDescriptor))
    }
  }

  deinit {
    lx_close(outputWaits)
    lx_close(inputRoomDescriptor)
  }

  /// Connects the output side. Before the guest runs.
  public func attach(to loop: EventLoop, sink: any ConsoleSink) throws(HostError) {
    _ = try loop.register(outputWaits, events: EPOLLIN.rawValue, handler: self, tag: Self.outputTag)
    state.withLock { state in
      state.sink = sink
      state.loop = loop
    }
  }

  /// Whether to be told when the sink takes more. It is registered only while it is waited for: a pipe whose reader has
  /// gone, or a terminal that hung up, would be reported without end.
  private func waitForSink(_ waits: Bool, _ state: inout State) {
    guard waits != (state.sinkSource != nil), let loop = state.loop else { return }
    if let source = state.sinkSource {
      loop.unregister(source)
      state.sinkSource = nil
    } else if let descriptor = state.sink?.waitDescriptor {
      // A regular file can't be waited for (EPERM), and need not be.
      state.sinkSource = try? loop.register(
        descriptor, events: EPOLLOUT.rawValue, handler: self, tag: Self.sinkTag)
    }
  }

  /// Bytes from the console for the guest. Returns how many there was room for.
  public func receive(_ bytes: ArraySlice<UInt8>) -> Int {
    state.withLock { state in
      let taken = bytes.prefix(Self.inputLimit - state.input.count)
      state.inputRefused = taken.count < bytes.count
      guard !taken.isEmpty else { return 0 }
      state.input.append(contentsOf: taken)
      if state.interruptEnable & InterruptEnable.received != 0 { line.raise() }
      return taken.count
    }
  }

  // MARK: Device thread

  public func ready(tag: UInt32, events: UInt32) {
    _ = lx_eventfd_take(outputWaits)
    drain()
  }

  /// Writes out what is left after the guest has ended, waiting for a slow reader a second at the most.
  /// The device thread has ended.
  public func finish() {
    drain()
    for _ in 0..<10 {
      guard state.withLock({ !$0.output.isEmpty }) else { return }
      if let descriptor = state.withLock({ $0.sink?.waitDescriptor }) {
        HostThread.waitWritable(descriptor, timeoutMilliseconds: 100)
      }
      drain()
    }
  }

  private func drain() {
    var (bytes, sink) = state.withLock { state in
      var taken: [UInt8] = []
      swap(&taken, &state.output)
      return (taken, state.sink)
    }
    guard let sink, !bytes.isEmpty else { return }
    let written = sink.write(bytes[...])
    state.withLock { state in
      if written < bytes.count {
        // The reader is slow: keep the rest in front of what came meanwhile, and wait until it can be written.
        bytes.removeFirst(written)
        bytes.append(contentsOf: state.output)
        swap(&bytes, &state.output)
        waitForSink(true, &state)
      } else {
        waitForSink(false, &state)
        if state.output.isEmpty {
          bytes.removeAll(keepingCapacity: true)
          swap(&bytes, &state.output)
        }
      }
      if state.isTransmitterEmpty, state.interruptEnable & InterruptEnable.transmitterEmpty != 0,
        !state.transmitInterrupt
      {
        state.transmitInterrupt = true
        line.raise()
      }
    }
  }

  // MARK: Registers

  public func read(offset: UInt64, size: Int) -> UInt64 {
    guard size == 1 else { return UInt64.max >> UInt64(64 - size * 8) }
    return UInt64(state.withLock { readRegister(offset, &$0) })
  }

  private func readRegister(_ offset: UInt64, _ state: inout State) -> UInt8 {
    let divisorLatch = state.lineControl & 0x80 != 0
    switch offset {
    case 0:
      if divisorLatch { return UInt8(truncatingIfNeeded: state.divisor) }
      guard !state.input.isEmpty else { return 0 }
      let byte = state.input.removeFirst()
      tellOfRoom(&state)
      if !state.input.isEmpty, state.interruptEnable & InterruptEnable.received != 0 { line.raise() }
      return byte
    case 1: return divisorLatch ? UInt8(state.divisor >> 8) : state.interruptEnable
    case 2:
      let fifo: UInt8 = state.fifoEnabled ? 0xc0 : 0
      if !state.input.isEmpty, state.interruptEnable & InterruptEnable.received != 0 { return fifo | 4 }
      if state.transmitInterrupt, state.interruptEnable & InterruptEnable.transmitterEmpty != 0 {
        // Reading the identification clears this cause.
        state.transmitInterrupt = false
        return fifo | 2
      }
      return fifo | 1
    case 3: return state.lineControl
    case 4: return state.modemControl
    case 5:
      return (state.input.isEmpty ? 0 : LineStatus.dataReady)
        | (state.isTransmitterEmpty ? LineStatus.transmitterEmpty : 0)
    case 6:
      // Loopback wires the modem outputs to the inputs; otherwise carrier, data set ready and clear to send.
      guard state.modemControl & 0x10 != 0 else { return 0xb0 }
      let control = state.modemControl
      return (control & 1) << 5 | (control & 2) << 3 | (control & 4) << 4 | (control & 8) << 4
    default: return state.scratch
    }
  }

  private func tellOfRoom(_ state: inout State) {
    guard state.inputRefused, state.input.count < Self.inputLimit / 2 else { return }
    state.inputRefused = false
    lx_eventfd_signal(inputRoomDescriptor)
  }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    guard size == 1 else { return }
    let wakes = state.withLock { writeRegister(offset, UInt8(truncatingIfNeeded: value), &$0) }
    if wakes { lx_eventfd_signal(outputWaits) }
  }

  /// True when the device thread has to be told about output.
  private func writeRegister(_ offset: UInt64, _ value: UInt8, _ state: inout State) -> Bool {
    let divisorLatch = state.lineControl & 0x80 != 0
    switch offset {
    case 0:
      if divisorLatch {
        state.divisor = state.divisor & 0xff00 | UInt16(value)
        return false
      }
      return transmit(value, &state)
    case 1:
      if divisorLatch {
        state.divisor = state.divisor & 0xff | UInt16(value) << 8
        return false
      }
      let enabled = value & 0x0f & ~state.interruptEnable
      state.interruptEnable = value & 0x0f
      // Enabling the transmitter-empty interrupt with an empty transmitter raises it.
      let isTransmitEnabled = enabled & InterruptEnable.transmitterEmpty != 0 && state.isTransmitterEmpty
      if isTransmitEnabled { state.transmitInterrupt = true }
      if isTransmitEnabled || (enabled & InterruptEnable.received != 0 && !state.input.isEmpty) { line.raise() }
    case 2:
      state.fifoEnabled = value & 1 != 0
      if value & 2 != 0 {
        state.input.removeAll(keepingCapacity: true)
        tellOfRoom(&state)
      }
    case 3: state.lineControl = value
    case 4: state.modemControl = value & 0x1f
    case 7: state.scratch = value
    default: break
    }
    return false
  }

  private func transmit(_ value: UInt8, _ state: inout State) -> Bool {
    if state.modemControl & 0x10 != 0 {
      if state.input.count < Self.inputLimit { state.input.append(value) }
      if state.interruptEnable & InterruptEnable.received != 0 { line.raise() }
      return false
    }
    guard state.output.count < Self.outputLimit else {
      lostOutput.add(1)
      return false
    }
    state.output.append(value)
    // The byte leaves at once as far as the guest can see, while there is room.
    if !state.isTransmitterEmpty {
      state.transmitInterrupt = false
    } else if state.interruptEnable & InterruptEnable.transmitterEmpty != 0, !state.transmitInterrupt {
      state.transmitInterrupt = true
      line.raise()
    }
    return state.output.count == 1
  }

  // MARK: Machine state

  public func quiesce() {}

  public func save(to writer: inout StateWriter) {
    state.withLock { state in
      writer.section(sectionTag("uart"), version: 1) { writer in
        writer.put(state.interruptEnable)
        writer.put(state.lineControl)
        writer.put(state.modemControl)
        writer.put(state.scratch)
        writer.put(state.divisor)
        writer.put(state.fifoEnabled)
        writer.put(state.transmitInterrupt)
        writer.put(state.input)
      }
    }
  }

  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {
    var restored = State()
    try reader.section(sectionTag("uart"), version: 1) { reader, _ throws(StateError) in
      restored.interruptEnable = try reader.get()
      restored.lineControl = try reader.get()
      restored.modemControl = try reader.get()
      restored.scratch = try reader.get()
      restored.divisor = try reader.get()
      restored.fifoEnabled = try reader.get(Bool.self)
      restored.transmitInterrupt = try reader.get(Bool.self)
      restored.input = try reader.get([UInt8].self)
      guard restored.input.count <= Self.inputLimit else { throw .invalid("serial input beyond its limit") }
      guard restored.interruptEnable <= 0x0f, restored.modemControl <= 0x1f else {
        throw .invalid("serial registers with bits they don't have")
      }
    }
    if isTrial { return }
    state.withLock { state in
      restored.sink = state.sink
      restored.loop = state.loop
      restored.sinkSource = state.sinkSource
      state = restored
    }
  }

  public func resume() {
    let raises = state.withLock { state in
      // What waited for the console is not saved: the driver may wait for room, of which there is plenty now.
      state.transmitInterrupt =
        state.transmitInterrupt
        || state.isTransmitterEmpty && state.interruptEnable & InterruptEnable.transmitterEmpty != 0
      return !state.input.isEmpty || state.transmitInterrupt
    }
    if raises { line.raise() }
    drain()
  }
}
