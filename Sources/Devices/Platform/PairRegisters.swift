internal import GuestMemory
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
  }

  public let name = "pair"
  private let state = Mutex(State())
  /// Changes with the rings.
  private let changes = Atomic<UInt32>(0)
  /// Whether a ring may lie at an address.
  private let isRAM: @Sendable (UInt64) -> Bool

  /// - Parameter isRAM: whether ``SourceRing/size`` bytes at an address are RAM.
  public init(isRAM: @escaping @Sendable (UInt64) -> Bool) { self.isRAM = isRAM }

  /// What guests are offered from now on (``PairFeature``).
  public func offer(_ features: UInt32) { state.withLock { $0.offered = features } }

  /// Another number whenever ``rings`` has changed.
  @inline(__always)
  public var generation: UInt32 { changes.load(ordering: .acquiring) }
  /// Guest-physical addresses of the rings there are.
  public var rings: [UInt64] { state.withLock { $0.rings.filter { $0 != 0 } } }

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
        state.rings[Int(state.select)] = address % GuestMemory.pageSize == 0 && isRAM(address) ? address : 0
        changes.wrappingAdd(1, ordering: .releasing)
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
      }
    }
  }

  public func restore(from reader: inout StateReader) throws(StateError) {
    let (select, low, rings) = try reader.section(sectionTag("pair"), version: 1) { reader, _ throws(StateError) in
      let select = try reader.get(UInt32.self)
      let low = try reader.get(UInt32.self)
      var rings: [UInt64] = []
      for _ in 0..<SourceRing.count { rings.append(try reader.get()) }
      return (select, low, rings)
    }
    guard select < SourceRing.count else { throw .invalid("ring \(select)") }
    for ring in rings where ring % GuestMemory.pageSize != 0 || ring != 0 && !isRAM(ring) {
      throw .invalid("a ring at \(ring)")
    }
    state.withLock { state in
      state.select = select
      state.low = low
      state.rings = rings
    }
    changes.wrappingAdd(1, ordering: .releasing)
  }
}
