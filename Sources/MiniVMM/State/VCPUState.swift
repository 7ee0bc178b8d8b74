internal import CKVM
internal import StateCodec

/// Everything of a vCPU that KVM keeps, as plain values: its structures byte for byte (their layout is the kernel's ABI).
struct VCPUState: Equatable, Sendable {
  struct Register: Equatable, Sendable {
    var index: UInt32
    var value: UInt64
  }

  /// kvm_cpuid_entry2, as KVM_GET_CPUID2 gives them.
  var cpuid: [UInt8] = []
  var mpState: [UInt8] = []
  var regs: [UInt8] = []
  var sregs: [UInt8] = []
  /// 4096 bytes, or what KVM_CAP_XSAVE2 says.
  var xsave: [UInt8] = []
  var xcrs: [UInt8] = []
  var debugRegs: [UInt8] = []
  var lapic: [UInt8] = []
  var tscKHz: UInt32 = 0
  /// The guest's time stamp counter at the moment of the saved clock.
  var tsc: UInt64 = 0
  /// Model-specific registers but for the time stamp counter and its deadline.
  var registers: [Register] = []
  /// IA32_TSC_DEADLINE, which is restored last: it counts against everything before.
  var tscDeadline: UInt64?
  var events: [UInt8] = []

  static let cpuidLimit = 256
  static let registerLimit = 1024
  static let cpuidEntrySize = MemoryLayout<kvm_cpuid_entry2>.stride
  static let mpStateSize = MemoryLayout<kvm_mp_state>.size
  static let regsSize = MemoryLayout<kvm_regs>.size
  static let sregsSize = MemoryLayout<kvm_sregs>.size
  static let xcrsSize = MemoryLayout<kvm_xcrs>.size
  static let debugRegsSize = MemoryLayout<kvm_debugregs>.size
  static let lapicSize = MemoryLayout<kvm_lapic_state>.size
  static let eventsSize = MemoryLayout<kvm_vcpu_events>.size
  private static let tag = sectionTag("vcpu")
}

extension VCPUState {
  func encode(to writer: inout StateWriter) {
    writer.section(Self.tag, version: 1) { writer in
      for blob in [cpuid, mpState, regs, sregs, xsave, xcrs, debugRegs, lapic] { writer.put(blob) }
      writer.put(tscKHz)
      writer.put(tsc)
      writer.put(UInt32(registers.count))
      for register in registers {
        writer.put(register.index)
        writer.put(register.value)
      }
      writer.put(tscDeadline != nil)
      writer.put(tscDeadline ?? 0)
      writer.put(events)
    }
  }

  /// - Parameter xsaveSize: this host's; the kernel reads that many bytes.
  static func decode(_ reader: inout StateReader, xsaveSize: Int) throws(StateError) -> VCPUState {
    try reader.section(tag, version: 1) { reader, _ throws(StateError) in
      var state = VCPUState()
      state.cpuid = try reader.get()
      guard state.cpuid.count % cpuidEntrySize == 0, state.cpuid.count <= cpuidLimit * cpuidEntrySize else {
        throw .invalid("a CPUID table of \(state.cpuid.count) bytes")
      }
      state.mpState = try reader.blob("MP state", mpStateSize)
      state.regs = try reader.blob("registers", regsSize)
      state.sregs = try reader.blob("special registers", sregsSize)
      state.xsave = try reader.blob("XSAVE area", xsaveSize)
      state.xcrs = try reader.blob("XCRs", xcrsSize)
      state.debugRegs = try reader.blob("debug registers", debugRegsSize)
      state.lapic = try reader.blob("local APIC", lapicSize)
      state.tscKHz = try reader.get()
      state.tsc = try reader.get()
      let count: UInt32 = try reader.get()
      guard count <= registerLimit, Int(count) * 12 <= reader.remaining else {
        throw .invalid("\(count) model-specific registers")
      }
      for _ in 0..<count { state.registers.append(Register(index: try reader.get(), value: try reader.get())) }
      let hasDeadline: Bool = try reader.get()
      let deadline: UInt64 = try reader.get()
      state.tscDeadline = hasDeadline ? deadline : nil
      state.events = try reader.blob("pending events", eventsSize)
      return state
    }
  }
}

extension StateReader {
  /// Bytes that are one structure of the kernel's, of exactly its size.
  mutating func blob(_ name: String, _ size: Int) throws(StateError) -> [UInt8] {
    let bytes: [UInt8] = try get()
    guard bytes.count == size else { throw .invalid("\(name) of \(bytes.count) bytes, not \(size)") }
    return bytes
  }
}
