import Devices
import Foundation
import GuestMemory
import Harness
import StateCodec
import Testing

@testable import MiniVMM

/// The tables that firmware would have left, read as a guest reads them.
@Suite("ACPI") struct ACPITests {
  private let memory: GuestMemory

  init() throws { memory = try GuestMemory(size: 16 << 20) }

  /// Loads a kernel whose file holds `text`; the command line that the guest finds.
  @discardableResult
  private func boot(
    holding text: String = "", line: String = "", devices: Int = 2, acpi: Bool = true, pvh: Bool = true, cpus: Int = 2
  ) throws -> String {
    let file = MemoryFile(
      TestELF(code: Code.powerOff + Array(text.utf8), pvhEntry: pvh ? 0x20_0000 : nil).bytes)
    let windows = (0..<devices).map {
      BootSource.Window(address: 0xc000_1000 + UInt64($0) << 12, interrupt: 5 + UInt32($0))
    }
    _ = try BootSource(kernel: file.descriptor, commandLine: line, devices: windows, acpi: acpi)
      .load(into: memory, cpus: cpus)
    let bytes = try memory.bytes(at: BootLayout.commandLine, count: 2048)
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }

  private struct Table {
    var signature: String
    var bytes: [UInt8]
  }

  private func table(at address: UInt64) throws -> Table {
    let bytes = try memory.bytes(at: address, count: Int(try memory.load(UInt32.self, at: address + 4)))
    return Table(signature: String(decoding: bytes[..<4], as: UTF8.self), bytes: bytes)
  }

  /// From the root pointer on: XSDT, FADT, MADT, DSDT.
  private func tables() throws -> [Table] {
    let xsdt = try table(at: try memory.load(at: BootLayout.rsdp + 24))
    let entries = stride(from: 36, to: xsdt.bytes.count, by: 8).map { xsdt.bytes.field($0, UInt64.self) }
    let found = try entries.map(table)
    return [xsdt] + found + [try table(at: found[0].bytes.field(140))]
  }

  @Test func everyTable_isFoundFromTheRootPointer_andSumsToZero() throws {
    try boot()
    let pointer = try memory.bytes(at: 0xe_0000, count: 36)
    #expect(pointer.starts(with: Array("RSD PTR ".utf8)))
    #expect(pointer[..<20].reduce(0, &+) == 0 && pointer.reduce(0, &+) == 0)
    let tables = try tables()
    #expect(tables.map(\.signature) == ["XSDT", "FACP", "APIC", "DSDT"])
    for table in tables { #expect(table.bytes.reduce(0, &+) == 0, "\(table.signature)") }
    #expect(tables[1].bytes.count == 276)
  }

  @Test func mostDevicesAndCPUs_fitBelowOneMebibyte() throws {
    try boot(devices: AssembledMachine.interrupts.count, cpus: Machine.maximumCPUs)
    #expect(try tables().map(\.signature) == ["XSDT", "FACP", "APIC", "DSDT"])
  }

  @Test(arguments: [true, false]) func rootPointer_isToldByBothProtocols_unlessThereIsNoACPI(acpi: Bool) throws {
    try boot(acpi: acpi, pvh: true)
    #expect(try memory.load(UInt64.self, at: BootLayout.startInfo + 32) == (acpi ? 0xe_0000 : 0))
    try boot(acpi: acpi, pvh: false)
    #expect(try memory.load(UInt64.self, at: BootLayout.zeroPage + 0x70) == (acpi ? 0xe_0000 : 0))
    #expect(try memory.load(UInt64.self, at: 0xe_0000) == (acpi ? 0x2052_5450_2044_5352 : 0))
  }

  // MARK: Announced once

  private static let words = "virtio_mmio.device=4K@0xc0001000:5 virtio_mmio.device=4K@0xc0002000:6"

  @Test func kernelThatReadsACPI_findsNoWordsOnItsCommandLine() throws {
    let linux = "RSD PTR ... Linux version 6.1.0"
    #expect(try boot(holding: linux, line: "quiet") == "quiet")
    #expect(try boot(holding: linux, line: "quiet acpi=off") == Self.words + " quiet acpi=off")
    #expect(try boot(holding: linux, line: "quiet -- acpi=off") == "quiet -- acpi=off")
    #expect(try boot(holding: linux, line: "quiet", acpi: false) == Self.words + " quiet")
    // Linux without ACPI, and a kernel that may read the tables but is not known to look for virtio devices there.
    #expect(try boot(holding: "Linux version 6.1.0", line: "quiet") == Self.words + " quiet")
    #expect(try boot(holding: "RSD PTR ", line: "quiet") == Self.words + " quiet")
  }

  /// Linux gives what stands behind `--` to init, and takes all behind an open quote for one word.
  @Test(arguments: ["quiet -- single", "-- single", #"quiet "--" single"#, #"foo="bar baz"#, "", "\u{a0}-- single"])
  func words_goBeforeEverything(line: String) throws {
    #expect(try boot(line: line) == (line.isEmpty ? Self.words : Self.words + " " + line))
  }

  @Test func words_countInTheCommandLinesLength() throws {
    let room = 2047 - Self.words.utf8.count - 1
    try boot(line: String(repeating: "x", count: room))
    #expect(throws: BootError.commandLineTooLong(bytes: 2048, limit: 2047)) {
      try boot(line: String(repeating: "x", count: room + 1))
    }
  }

  // MARK: By the reference compiler

  /// iasl takes the tables apart, finds nothing wrong with what it reads, and makes a DSDT of what it wrote.
  @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: "/usr/bin/iasl"), "needs acpica-tools"))
  func tables_areWhatTheReferenceCompilerReads() throws {
    try boot(devices: 17)
    let folder = TestFolder()
    var texts: [String: String] = [:]
    for table in try tables() {
      let path = folder.path("\(table.signature).dat")
      try Data(table.bytes).write(to: URL(filePath: path))
      let outcome = try run("iasl", ["-d", path])
      #expect(outcome.status == 0, "\(outcome.output)\(outcome.errors)")
      let text = try String(contentsOfFile: folder.path("\(table.signature).dsl"), encoding: .utf8)
      for complaint in ["Invalid", "Error", "Warning", "Incorrect"] { #expect(!text.contains(complaint), "\(text)") }
      texts[table.signature] = text
    }
    let dsdt = try #require(texts["DSDT"])
    #expect(dsdt.ranges(of: #"Name (_HID, "LNRO0005")"#).count == 17)
    #expect(
      dsdt.contains("0xC0011000,         // Address Base\n                    0x00001000,         // Address Length"))
    #expect(dsdt.ranges(of: "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, )").count == 18)
    #expect(dsdt.contains("0x03F8,             // Range Minimum"))
    let fadt = try #require(texts["FACP"])
    #expect(fadt.contains("Hardware Reduced (V5) : 1"))
    #expect(fadt.contains("Address : 0000000000000606"))
    let again = try run("iasl", ["-p", folder.path("again"), folder.path("DSDT.dsl")])
    #expect(again.status == 0 && again.output.contains("0 Errors, 0 Warnings"), "\(again.output)")

  }
}
