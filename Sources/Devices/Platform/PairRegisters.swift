public import GuestMemory
public import StateCodec
internal import Synchronization
internal import VirtioLayout

/// The registers by which a guest and its replicating VMM speak (``PairRegister``). Every machine has them; what is offered
/// depends on who replicates it.
public final class PairRegisters: BusDevice, MachineDevice {
  private struct State {
    var offered: UInt32 = 0
    var select: UInt32 = 0
    var low: UInt32 = 0
    var rings = [UInt64](repeating: 0, count: SourceRing.count)
    var controlLow: UInt32 = 0
    var control: UInt64 = 0
  }

  public let name = "pair"
  private let state = Mutex(State())
  /// Changes with the rings.
  private let changes = Atomic<UInt32>(0)
  private let memory: GuestMemory
  private let line: InterruptLine

  public init(_ memory: GuestMemory, line: InterruptLine) {
    self.memory = memory
    self.line = line
  }

  /// What guests are offered from now on (``PairFeature``).
  public func offer(_ features: UInt32) { state.withLock { $0.offered = features } }

  /// Another number whenever ``rings`` has changed.
  @inline(__always)
  public var generation: UInt32 { changes.load(ordering: .acquiring) }
  /// Guest-physical addresses of the rings there are.
  public var rings: [UInt64] { state.withLock { $0.rings.filter { $0 != 0 } } }

  /// Asks the guest to get by with its first `cpus` CPUs; nil for all.
  /// - Returns: false when it has not said where it wants to be asked.
  @discardableResult
  public func want(_ cpus: Int?) -> Bool {
    let control = state.withLock { $0.control }
    guard control != 0, (try? memory.store(UInt32(cpus ?? 0), at: control + PairControl.wanted)) != nil else {
      return false
    }
    line.raise()
    return true
  }

  /// How many CPUs the guest says are active; nil when it has not said where.
  public var active: Int? {
    let control = state.withLock { $0.control }
    guard control != 0 else { return nil }
    return (try? memory.load(UInt32.self, at: control + PairControl.active)).map(Int.init)
  }

  private func isRing(_ address: UInt64) -> Bool {
    address % GuestMemory.pageSize == 0 && memory.fileOffset(of: address, count: SourceRing.size) != nil
  }

  private func isControl(_ address: UInt64) -> Bool {
    address % PairControl.size == 0 && memory.fileOffset(of: address, count: PairControl.size) != nil
  }

  // MARK: BusDevice, vCPU threads

  public func read(offset: UInt64, size: Int) -> UInt64 {
    guard size == 4 else { return ~0 >> UInt64(64 - 8 * size) }
    return state.withLock { state in
      let ring = state.rings[Int(state.select) % SourceRing.count]
      return switch offset {
      case PairRegister.magic: UInt64(PairRegister.magicValue)
      case PairRegister.version: 1
      case PairRegister.features: UInt64(state.offered)
      case PairRegister.ringSelect: UInt64(state.select)
      case PairRegister.ringLow: ring & 0xffff_ffff
      case PairRegister.ringHigh: ring >> 32
      case PairRegister.controlLow: state.control & 0xffff_ffff
      case PairRegister.controlHigh: state.control >> 32
      default: 0
      }
    }
  }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    guard size == 4 else { return }
    let value = UInt32(truncatingIfNeeded: value)
    state.withLock { state in
      switch offset {
      case PairRegister.ringSelect: state.select = min(value, UInt32(SourceRing.count - 1))
      case PairRegister.ringLow: state.low = value
      case PairRegister.ringHigh:
        let address = UInt64(value) << 32 | UInt64(state.low)
        state.rings[Int(state.select)] = isRing(address) ? address : 0
        changes.wrappingAdd(1, ordering: .releasing)
      case PairRegister.controlLow: state.controlLow = value
      case PairRegister.controlHigh:
        let address = UInt64(value) << 32 | UInt64(state.controlLow)
        state.control = isControl(address) ? address : 0
      default: break
      }
    }
  }

  // MARK: MachineDevice

  public func quiesce() {}
  public func resume() {}

  public func save(to writer: inout StateWriter) {
    state.withLock { state in
      writer.section(sectionTag("pair"), version: 1) { writer in
        writer.put(state.select)
        writer.put(state.low)
        for ring in state.rings { writer.put(ring) }
        writer.put(state.controlLow)
        writer.put(state.control)
      }
    }
  }

  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {
    let saved = try reader.section(sectionTag("pair"), version: 1) { reader, _ throws(StateError) in
      var saved = State()
      saved.select = try reader.get()
      saved.low = try reader.get()
      for index in 0..<SourceRing.count { saved.rings[index] = try reader.get() }
      saved.controlLow = try reader.get()
      saved.control = try reader.get()
      return saved
    }
    guard saved.select < SourceRing.count else { throw .invalid("ring \(saved.select)") }
    for ring in saved.rings where ring != 0 && !isRing(ring) { throw .invalid("a ring at \(ring)") }
    guard saved.control == 0 || isControl(saved.control) else { throw .invalid("control words at \(saved.control)") }
    if isTrial { return }
    state.withLock { state in
      let offered = state.offered
      state = saved
      state.offered = offered
    }
    changes.wrappingAdd(1, ordering: .releasing)
  }
}
