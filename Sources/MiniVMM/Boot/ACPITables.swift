internal import Devices
internal import GuestMemory
internal import StateCodec
internal import VirtioLayout

/// ACPI tables (ACPI 6.4, chapter 5) of a hardware-reduced machine: no fixed hardware, no firmware that acts. They name the
/// CPUs, the IOAPIC, the serial port, the virtio devices, and the registers that switch off and reset.
enum ACPITables {
  /// - Parameter devices: the virtio devices' windows.
  static func write(to memory: GuestMemory, cpus: Int, devices: [BootSource.Window]) throws(BootError) {
    var address = BootLayout.rsdp + 64
    func put(_ table: [UInt8]) throws(BootError) -> UInt64 {
      defer { address += UInt64(table.count + 15) & ~15 }
      try memory.put(table, at: address)
      return address
    }
    let dsdt = try put(Self.dsdt(devices))
    let tables = [try put(fadt(dsdt: dsdt)), try put(madt(cpus: cpus))]
    let xsdt = try put(table("XSDT", revision: 1) { out in tables.forEach { out.put($0) } })
    try memory.put(rsdp(xsdt: xsdt), at: BootLayout.rsdp)
  }

  /// §5.2.5.3
  private static func rsdp(xsdt: UInt64) -> [UInt8] {
    var bytes = StateWriter.bytes { out in
      out.ascii("RSD PTR ")
      out.put(UInt8(0))  // checksum, below
      out.ascii("MINVMM")
      out.put(UInt8(2))  // revision
      out.put(UInt32(0))  // no RSDT
      out.put(UInt32(36))
      out.put(xsdt)
      out.zeros(4)  // checksum of the whole, below; reserved
    }
    bytes[8] = checksum(bytes[..<20])
    bytes[32] = checksum(bytes[...])
    return bytes
  }

  /// §5.2.6: a table with its header.
  private static func table(
    _ signature: StaticString, revision: UInt8, _ body: (inout StateWriter) -> Void
  ) -> [UInt8] {
    let body = StateWriter.bytes(body)
    var bytes = StateWriter.bytes { out in
      out.ascii(signature)
      out.put(UInt32(36 + body.count))
      out.put(revision)
      out.put(UInt8(0))  // checksum, below
      out.ascii("MINVMM")
      out.ascii("MINIVMM ")
      out.put(UInt32(1))
      out.ascii("MVMM")
      out.put(UInt32(1))
    }
    bytes += body
    bytes[9] = checksum(bytes[...])
    return bytes
  }

  /// §5.2.9
  private static func fadt(dsdt: UInt64) -> [UInt8] {
    let noVGA: UInt16 = 1 << 2
    let (wbinvd, noPowerButton, noSleepButton): (UInt32, UInt32, UInt32) = (1, 1 << 4, 1 << 5)
    let (resetRegister, hardwareReduced): (UInt32, UInt32) = (1 << 10, 1 << 20)
    return table("FACP", revision: 6) { out in
      out.put(UInt32(0))
      out.put(UInt32(dsdt))
      out.zeros(109 - 44)  // fixed hardware: none
      out.put(noVGA)
      out.zeros(1)
      out.put(wbinvd | noPowerButton | noSleepButton | resetRegister | hardwareReduced)
      out.port(I8042.port + 4)
      out.put(I8042.resetCommand)
      out.zeros(2)
      out.put(UInt8(4))  // minor revision
      out.put(UInt64(0))
      out.put(dsdt)
      out.zeros(244 - 148)  // fixed hardware: none
      out.port(PowerControl.port + PowerControl.sleepControl)
      out.port(PowerControl.port + PowerControl.sleepStatus)
      out.ascii("MINIVMM ")
    }
  }

  /// §5.2.12
  private static func madt(cpus: Int) -> [UInt8] {
    table("APIC", revision: 5) { out in
      out.put(MPTable.localAPIC)
      out.put(UInt32(0))  // no PICs to speak of
      for cpu in 0..<UInt8(cpus) { out.raw([0, 8, cpu, cpu, 1, 0, 0, 0]) }  // local APIC and its id: enabled
      out.raw([1, 12, UInt8(cpus), 0])  // IOAPIC
      out.put(MPTable.ioAPIC)
      out.put(UInt32(0))  // its first interrupt
      // ISA's interrupts are edge-triggered and active high by default. Linux takes 0, the FADT's SCI_INT, for level-triggered and
      // active low unless it is told otherwise.
      out.raw([2, 10, 0, 0, 0, 0, 0, 0, 0b0101, 0])
      out.raw([4, 6, 0xff, 0, 0, 1])  // NMI: LINT1 of every CPU
    }
  }

  /// §5.2.11.1
  private static func dsdt(_ devices: [BootSource.Window]) -> [UInt8] {
    var body = AML.device(
      "COM1",
      AML.name("_HID", AML.string("PNP0501")) + AML.name("_UID", AML.integer(1))
        + AML.name(
          "_CRS",
          AML.resources([
            AML.ports(UInt16(AssembledMachine.serialPort), UInt8(Serial8250.portCount)),
            AML.interrupt(AssembledMachine.serialInterrupt),
          ])))
    // Without an interrupt, which the clock does not raise.
    body += AML.device(
      "RTC0",
      AML.name("_HID", AML.string("PNP0B00"))
        + AML.name("_CRS", AML.resources([AML.ports(UInt16(RTC.port), UInt8(RTC.size))])))
    for (index, device) in devices.enumerated() {
      body += AML.device(
        "VR\(index / 10)\(index % 10)",
        AML.name("_HID", AML.string("LNRO0005")) + AML.name("_UID", AML.integer(UInt16(index)))
          + AML.name(
            "_CRS",
            AML.resources([
              AML.memory(UInt32(device.address), UInt32(MMIORegister.windowSize)), AML.interrupt(device.interrupt),
            ])))
    }
    let off = AML.package([AML.integer(UInt16(PowerControl.offType))])
    return table("DSDT", revision: 2) { out in
      out.raw(AML.name("_S5_", off) + AML.scope("_SB_", body))
    }
  }

  /// What makes the sum of all bytes zero.
  private static func checksum(_ bytes: ArraySlice<UInt8>) -> UInt8 { 0 &- bytes.reduce(0, &+) }
}

extension StateWriter {
  fileprivate mutating func raw(_ bytes: [UInt8]) { for byte in bytes { put(byte) } }

  /// A generic address (§5.2.3.2): an I/O port of 8 bits.
  fileprivate mutating func port(_ number: UInt64) {
    raw([1, 8, 0, 1])
    put(number)
  }
}
