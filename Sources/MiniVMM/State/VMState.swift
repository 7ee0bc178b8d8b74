internal import CKVM
internal import StateCodec

/// What KVM keeps for the machine as a whole: timer, clock, interrupt controllers.
struct VMState: Equatable, Sendable {
  var pit: [UInt8] = []
  /// kvmclock, in nanoseconds.
  var clock: UInt64 = 0
  /// The host's wall clock at that moment, in nanoseconds since 1970; nil where the kernel doesn't tell.
  var realtime: UInt64?
  var picMaster: [UInt8] = []
  var picSlave: [UInt8] = []
  var ioapic: [UInt8] = []

  static let pitSize = MemoryLayout<kvm_pit_state2>.size
  static let irqchipSize = MemoryLayout<kvm_irqchip>.size
  private static let tag = sectionTag("vm  ")

  func encode(to writer: inout StateWriter) {
    writer.section(Self.tag, version: 1) { writer in
      writer.put(pit)
      writer.put(clock)
      writer.put(realtime != nil)
      writer.put(realtime ?? 0)
      for chip in [picMaster, picSlave, ioapic] { writer.put(chip) }
    }
  }

  static func decode(_ reader: inout StateReader) throws(StateError) -> VMState {
    try reader.section(tag, version: 1) { reader, _ throws(StateError) in
      var state = VMState()
      state.pit = try reader.blob("PIT", pitSize)
      state.clock = try reader.get()
      let hasRealtime: Bool = try reader.get()
      let realtime: UInt64 = try reader.get()
      state.realtime = hasRealtime ? realtime : nil
      state.picMaster = try irqchip(&reader, KVM_IRQCHIP_PIC_MASTER)
      state.picSlave = try irqchip(&reader, KVM_IRQCHIP_PIC_SLAVE)
      state.ioapic = try irqchip(&reader, KVM_IRQCHIP_IOAPIC)
      return state
    }
  }

  private static func irqchip(_ reader: inout StateReader, _ id: Int32) throws(StateError) -> [UInt8] {
    let chip = try reader.blob("interrupt controller", irqchipSize)
    guard chip[0] == UInt8(id), chip[1...3].allSatisfy({ $0 == 0 }) else {
      throw .invalid("interrupt controller \(chip[0]) in the place of \(id)")
    }
    return chip
  }
}
