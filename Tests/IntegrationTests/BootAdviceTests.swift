import Foundation
import Harness
import Testing

extension Integration {
  /// What a user is told of a kernel that does not find its disk. The kernel is a few instructions that say what Linux would.
  @Suite("Boot advice", .enabled(if: Environment.hasKVM, "needs /dev/kvm")) struct BootAdvice {
    private let folder = TestFolder()
    private static let panic =
      "[    1.0] Run /sbin/init\nKernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n"
    private static let hang: [UInt8] = [0xfa, 0xf4, 0xeb, 0xfc]
    /// The sleep control register that ACPI's tables name.
    private static let powerOff: [UInt8] = [0x66, 0xba, 0x06, 0x06, 0xb0, 0x34, 0xee] + hang

    /// - Parameter place: where the text is in guest RAM, if it is not the kernel's own.
    private func arguments(
      saying text: String, at place: UInt32? = nil, then end: [UInt8], disk: Bool
    ) throws -> [String] {
      // mov esi, text; mov dx, 0x3f8; 0: lodsb; test al, al; jz 1f; out dx, al; jmp 0b; 1:
      let loop: [UInt8] = [0x66, 0xba, 0xf8, 0x03, 0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8]
      let address = place ?? UInt32(0x20_0000 + 5 + loop.count + end.count)
      let code = [0xbe] + little(address) + loop + end + Array(text.utf8) + [0]
      let note =
        little(UInt32(4)) + little(UInt32(4)) + little(UInt32(18)) + Array("Xen\0".utf8) + little(UInt32(0x20_0000))
      var file = [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9)
      file +=
        little(UInt16(2)) + little(UInt16(62)) + little(UInt32(1)) + little(UInt64(0x20_0000)) + little(UInt64(64))
      file += little(UInt64(0)) + little(UInt32(0)) + [64, 56, 2, 0, 0, 0].flatMap { little(UInt16($0)) }
      for (type, offset, bytes) in [(1, 176, code), (4, 176 + code.count, note)] {
        file += little(UInt32(type)) + little(UInt32(7)) + little(UInt64(offset)) + little(UInt64(0))
        file +=
          little(UInt64(0x20_0000)) + little(UInt64(bytes.count)) + little(UInt64(bytes.count)) + little(UInt64(4))
      }
      let (kernel, image) = (folder.path("kernel"), folder.path("disk.img"))
      try Data(file + code + note).write(to: URL(filePath: kernel))
      try Data(count: 1 << 20).write(to: URL(filePath: image))
      return ["run", "--kernel", kernel, "--memory", "16M"] + (disk ? ["--disk", image] : [])
    }

    private func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
      (0..<T.bitWidth / 8).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }
    }

    @Test func panicThatHangs_isExplainedAtOnceAndOnce() throws {
      let guest = try Guest(arguments(saying: Self.panic, then: Self.hang, disk: true))
      try guest.wait(for: "CONFIG_VIRTIO_BLK", timeout: 20)
      #expect(guest.isRunning)
      guest.signal(SIGTERM)
      #expect(try guest.waitForExit() == 0)
      #expect(
        guest.console.contains("\n  Kernel panic - not syncing: VFS: Unable to mount root fs"), "\(guest.console)")
      for option in ["CONFIG_VIRTIO_MMIO,", "CONFIG_ACPI", "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"] {
        #expect(guest.count(of: option) == 1, "\(guest.console)")
      }
    }

    @Test func panicWithoutADisk_asksForOne() throws {
      let guest = try Guest(arguments(saying: Self.panic, then: Self.powerOff, disk: false))
      #expect(try guest.waitForExit() == 0)
      #expect(guest.count(of: "give --disk") == 1, "\(guest.console)")
    }

    @Test func guestThatEndsWithoutADriver_isExplained() throws {
      let guest = try Guest(arguments(saying: "bye\n", then: Self.powerOff, disk: true))
      #expect(try guest.waitForExit() == 0)
      #expect(
        guest.console.contains("\n  bye\nminivmm: the guest drove none of its virtio devices"), "\(guest.console)")
    }

    @Test func guestThatHasNothingToDrive_isNot() throws {
      let guest = try Guest(arguments(saying: "bye\n", then: Self.powerOff, disk: false))
      #expect(try guest.waitForExit() == 0)
      #expect(!guest.console.contains("minivmm:"), "\(guest.console)")
    }

    /// The kernel says its command line, and its file what a Linux that reads ACPI tables has in it.
    @Test(
      arguments: [
        ([], nil, false), (["--no-acpi"], nil, true), ([], #"{"acpi":false}"#, true),
        (["--acpi"], #"{"acpi":false}"#, false), (["--cmdline", "acpi=off"], nil, true),
      ] as [([String], String?, Bool)])
    func devicesAreOnTheCommandLine_whereThereIsNoACPI(options: [String], configuration: String?, expected: Bool) throws
    {
      let commandLine: UInt32 = 0x2_0000
      var words = try arguments(saying: "RSD PTR Linux version 6", at: commandLine, then: Self.powerOff, disk: false)
      if let configuration {
        try Data(configuration.utf8).write(to: URL(filePath: folder.path("c.json")))
        words += ["--config", folder.path("c.json")]
      }
      for command in ["run", "pair"] {
        let outcome = try run(Environment.minivmm, [command] + words.dropFirst() + options)
        #expect(outcome.status == 0, "\(outcome.errors)")
        #expect(outcome.output.contains("virtio_mmio.device=") == expected, "\(command): \(outcome.output)")
      }
    }
  }
}
