import LabC

/// Tells the VMM what replies are made of, so that it can let them out without waiting for a secondary that says the same: see
/// `PairLayout.swift`. Does nothing where nobody listens.
enum Sources {
  nonisolated(unsafe) private static var ring = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var written: UInt64 = 0
  nonisolated(unsafe) private(set) static var isHeard = false

  static func setUp() {
    guard mmio_read32(PairRegister.address + PairRegister.magic) == PairRegister.magicValue,
      mmio_read32(PairRegister.address + PairRegister.features) & PairFeature.sources != 0
    else { return }
    ring = Arena.takeZeroed(Int(SourceRing.size), alignment: 4096)
    let address = UInt64(UInt(bitPattern: ring))
    mmio_write32(PairRegister.address + PairRegister.ringSelect, 0)
    mmio_write32(PairRegister.address + PairRegister.ringLow, UInt32(truncatingIfNeeded: address))
    mmio_write32(PairRegister.address + PairRegister.ringHigh, UInt32(address >> 32))
    isHeard = true
  }

  /// One reply on its way to the VMM.
  struct Reply {
    private let record: UnsafeMutableRawPointer
    private var count = 0
    private var fits = true

    /// - Parameter ahead: bytes of earlier replies that TCP has not been given yet.
    fileprivate init(_ pcb: UnsafeMutablePointer<tcp_pcb>, ahead: Int, length: Int) {
      record = ring + Int(written % SourceRing.records * SourceRecord.size)
      // Not valid until it is whole.
      put(UInt64(0), SourceRecord.number)
      cpu_compiler_barrier()
      put(tcp_next_sequence(pcb) &+ UInt32(ahead), SourceRecord.sequence)
      put(UInt32(length), SourceRecord.length)
      tcp_conversation(pcb, record + Int(SourceRecord.version), record + Int(SourceRecord.localPort))
    }

    /// Memory that determines the answer.
    mutating func dependsOn(_ start: UnsafeRawPointer, _ length: Int) {
      add(start, length, SourceRecord.notCopied)
    }

    /// Memory that is in the answer, from `offset` on.
    mutating func copies(_ start: UnsafeRawPointer, _ length: Int, at offset: Int) {
      add(start, length, UInt32(offset))
    }

    private mutating func add(_ start: UnsafeRawPointer, _ length: Int, _ offset: UInt32) {
      guard count < SourceRecord.mostSources else { return fits = false }
      let place = SourceRecord.sources + UInt64(count) * 16
      put(UInt64(UInt(bitPattern: start)), place)
      put(UInt32(length), place + 8)
      put(offset, place + 12)
      count += 1
    }

    private func put<T: BitwiseCopyable>(_ value: T, _ offset: UInt64) {
      record.storeBytes(of: value, toByteOffset: Int(offset), as: T.self)
    }

    fileprivate func finish() {
      guard fits else { return }
      put(UInt8(count), SourceRecord.sourceCount)
      cpu_compiler_barrier()
      Sources.written += 1
      put(Sources.written, SourceRecord.number)
    }
  }

  /// Says what a reply is made of. What is not said is held until the secondary has said the same.
  static func tell(
    _ pcb: UnsafeMutablePointer<tcp_pcb>, ahead: Int, length: Int, _ describe: (inout Reply) -> Void
  ) {
    var reply = Reply(pcb, ahead: ahead, length: length)
    describe(&reply)
    reply.finish()
  }
}
