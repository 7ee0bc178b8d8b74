public import StateCodec
internal import Synchronization

/// The keyboard controller, without a keyboard: ports 0x60 (data) and 0x64 (status, command). Guests use it to reset the
/// machine (command 0xfe), and probe it at boot.
public final class I8042: BusDevice, MachineDevice {
  public static let port: UInt64 = 0x60
  /// Up to 0x64; port 0x61 in between is KVM's own.
  public static let size: UInt64 = 5

  /// Written to the command port: resets the machine.
  public static let resetCommand: UInt8 = 0xfe

  private struct State {
    /// Command byte: interrupts off, both ports disabled, self test passed.
    var control: UInt8 = 0x34
    var outputPort: UInt8 = 0xdf
    /// The byte that waits to be read.
    var output: UInt8?
    /// A command whose parameter comes by the data port.
    var awaiting: UInt8?
  }

  public let name = "i8042"
  private let state = Mutex(State())
  private let notify: @Sendable (PowerEvent) -> Void

  /// - Parameter notify: called on the vCPU thread that wrote; must not wait for that thread.
  public init(notify: @escaping @Sendable (PowerEvent) -> Void) { self.notify = notify }

  public func read(offset: UInt64, size: Int) -> UInt64 {
    state.withLock { state in
      switch offset {
      case 0:
        defer { state.output = nil }
        return UInt64(state.output ?? 0)
      // Output full (bit 0), self test passed (bit 2), keyboard not locked (bit 4); input never full.
      case 4: return 0x14 | (state.output == nil ? 0 : 1)
      default: return 0xff
      }
    }
  }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    let byte = UInt8(truncatingIfNeeded: value)
    if offset == 4, byte == Self.resetCommand { return notify(.reset) }
    state.withLock { state in
      switch offset {
      case 0:
        switch state.awaiting {
        case 0x60: state.control = byte
        case 0xd1: state.outputPort = byte
        default: break  // to a keyboard or mouse that isn't there
        }
        state.awaiting = nil
      case 4:
        state.awaiting = nil
        switch byte {
        case 0x20: state.output = state.control
        case 0xaa: state.output = 0x55  // self test passed
        case 0xab, 0xa9: state.output = 0x01  // interface test: clock line stuck, so no port to wait for
        case 0xd0: state.output = state.outputPort
        case 0x60, 0xd1: state.awaiting = byte
        case 0xa7: state.control |= 0x20
        case 0xa8: state.control &= ~0x20
        case 0xad: state.control |= 0x10
        case 0xae: state.control &= ~0x10
        default: break
        }
      default: break
      }
    }
  }

  public func quiesce() {}
  public func resume() {}

  public func save(to writer: inout StateWriter) {
    let state = state.withLock { $0 }
    writer.section(sectionTag("8042"), version: 1) { writer in
      writer.put(state.control)
      writer.put(state.outputPort)
      writer.put(state.output != nil)
      writer.put(state.output ?? 0)
      writer.put(state.awaiting != nil)
      writer.put(state.awaiting ?? 0)
    }
  }

  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {
    let restored = try reader.section(sectionTag("8042"), version: 1) { reader, _ throws(StateError) in
      var state = State()
      state.control = try reader.get()
      state.outputPort = try reader.get()
      let hasOutput: Bool = try reader.get()
      let output: UInt8 = try reader.get()
      guard hasOutput || output == 0 else { throw .invalid("keyboard controller output that is not there") }
      state.output = hasOutput ? output : nil
      let isAwaiting: Bool = try reader.get()
      let awaiting: UInt8 = try reader.get()
      guard isAwaiting ? awaiting == 0x60 || awaiting == 0xd1 : awaiting == 0 else {
        throw .invalid("keyboard controller command \(awaiting)")
      }
      state.awaiting = isAwaiting ? awaiting : nil
      return state
    }
    if !isTrial { state.withLock { $0 = restored } }
  }
}
