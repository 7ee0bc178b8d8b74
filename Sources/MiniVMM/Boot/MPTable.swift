internal import GuestMemory
internal import StateCodec

/// The Intel MultiProcessor Specification 1.4 tables: CPUs, the IOAPIC and where interrupts go, for guests without ACPI.
enum MPTable {
  static let localAPIC: UInt32 = 0xfee0_0000
  static let ioAPIC: UInt32 = 0xfec0_0000
  /// Pins of KVM's IOAPIC; GSI n is pin n.
  static let interruptCount: UInt8 = 24

  static func write(to memory: GuestMemory, cpus: Int) throws(BootError) {
    // Not a CPU's, so the IOAPIC's id needs no fixing by the guest.
    let ioAPICID = UInt8(cpus)
    var count: UInt16 = 0
    let entries = StateWriter.bytes { entries in
      func next() { count += 1 }
      for cpu in 0..<UInt8(cpus) {  // processor entries, §4.3.1
        next()
        entries.put(UInt8(0))
        entries.put(cpu)  // local APIC id
        entries.put(UInt8(0x14))  // local APIC version
        entries.put(UInt8(cpu == 0 ? 3 : 1))  // usable; the first one boots
        entries.put(UInt32(0x600))  // signature: family 6
        entries.put(UInt32(0x201))  // features: FPU, APIC
        entries.zeros(8)
      }
      next()  // bus entry, §4.3.2
      entries.put(UInt8(1))
      entries.put(UInt8(0))
      entries.ascii("ISA   ")
      next()  // I/O APIC entry, §4.3.3
      entries.put(UInt8(2))
      entries.put(ioAPICID)
      entries.put(UInt8(0x11))
      entries.put(UInt8(1))  // usable
      entries.put(ioAPIC)
      for irq in 0..<interruptCount {  // I/O interrupt entries, §4.3.4
        next()
        entries.put(UInt8(3))
        entries.put(UInt8(0))  // INT
        entries.put(UInt16(0))  // as the bus has it: ISA is edge-triggered, active high
        entries.put(UInt8(0))
        entries.put(irq)
        entries.put(ioAPICID)
        entries.put(irq)
      }
      for (kind, apic, pin): (UInt8, UInt8, UInt8) in [(3, 0, 0), (1, 0xff, 1)] {  // ExtINT, NMI: local, §4.3.5
        next()
        entries.put(UInt8(4))
        entries.put(kind)
        entries.put(UInt16(0))
        entries.put(UInt8(0))
        entries.put(UInt8(0))
        entries.put(apic)
        entries.put(pin)
      }
    }
    var header = StateWriter.bytes { header in  // §4.2
      header.ascii("PCMP")
      header.put(UInt16(44 + entries.count))
      header.put(UInt8(4))  // specification 1.4
      header.put(UInt8(0))  // checksum, below
      header.ascii("MINIVMM ")
      header.ascii("MINIVMM     ")
      header.put(UInt32(0))
      header.put(UInt16(0))
      header.put(count)
      header.put(localAPIC)
      header.put(UInt32(0))
    }
    header[7] = checksum(header + entries)
    var pointer = StateWriter.bytes { pointer in  // §4.1
      pointer.ascii("_MP_")
      pointer.put(UInt32(BootLayout.mpTable) + 16)
      pointer.put(UInt8(1))  // paragraphs
      pointer.put(UInt8(4))
      pointer.put(UInt8(0))  // checksum, below
      pointer.zeros(5)  // a configuration table follows; virtual wire mode, no IMCR
    }
    pointer[10] = checksum(pointer)
    try memory.put(pointer + header + entries, at: BootLayout.mpTable)
  }

  /// What makes the sum of all bytes zero.
  private static func checksum(_ bytes: [UInt8]) -> UInt8 { 0 &- bytes.reduce(0, &+) }
}
