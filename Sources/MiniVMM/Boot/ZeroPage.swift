internal import GuestMemory

/// `struct boot_params`, the "zero page" of the Linux boot protocol (Documentation/arch/x86/zero-page.rst).
struct ZeroPage {
  private(set) var bytes = [UInt8](repeating: 0, count: 4096)

  /// - Parameters:
  ///   - setupHeader: a bzImage's; nil for a vmlinux, which is told as little as it needs.
  ///   - rsdp: 0 without ACPI.
  init(
    setupHeader: [UInt8]?, memoryMap: [BootLayout.MemoryRange], commandLineLimit: Int, initrd: Range<UInt64>?,
    rsdp: UInt64
  ) {
    if let setupHeader {
      bytes.replaceSubrange(0x1f1..<0x1f1 + setupHeader.count, with: setupHeader)
    } else {
      set(0x1fe, UInt16(0xaa55))  // boot_flag
      set(0x202, UInt32(0x5372_6448))  // header "HdrS"
      set(0x206, UInt16(0x20c))  // version
      set(0x211, UInt8(1))  // loadflags: LOADED_HIGH
      set(0x230, UInt32(0x100_0000))  // kernel_alignment
    }
    set(0x070, rsdp)  // acpi_rsdp_addr
    set(0x210, UInt8(0xff))  // type_of_loader: none of the registered ones
    set(0x228, UInt32(BootLayout.commandLine))  // cmd_line_ptr
    set(0x238, UInt32(commandLineLimit))  // cmdline_size
    if let initrd {
      set(0x218, UInt32(initrd.lowerBound))  // ramdisk_image
      set(0x21c, UInt32(initrd.upperBound - initrd.lowerBound))  // ramdisk_size
    }
    set(0x1e8, UInt8(memoryMap.count))  // e820_entries
    for (index, range) in memoryMap.enumerated() {
      let at = 0x2d0 + index * 20
      set(at, range.start)
      set(at + 8, range.size)
      set(at + 16, range.type)
    }
  }

  private mutating func set<T: FixedWidthInteger>(_ offset: Int, _ value: T) {
    for index in 0..<T.bitWidth / 8 { bytes[offset + index] = UInt8(truncatingIfNeeded: value >> T(index * 8)) }
  }
}
