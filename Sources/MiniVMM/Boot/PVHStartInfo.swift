internal import GuestMemory
internal import StateCodec

/// `hvm_start_info` and what it points to: how a PVH kernel learns of its memory, command line and initrd
/// (Xen's public/arch-x86/hvm/start_info.h, version 1).
enum PVHStartInfo {
  static func write(
    to memory: GuestMemory, memoryMap: [BootLayout.MemoryRange], initrd: Range<UInt64>?, rsdp: UInt64
  ) throws(BootError) {
    let info = StateWriter.bytes { info in
      info.put(UInt32(0x336e_c578))  // magic
      info.put(UInt32(1))  // version
      info.put(UInt32(0))  // flags
      info.put(UInt32(initrd == nil ? 0 : 1))  // nr_modules
      info.put(initrd == nil ? 0 : BootLayout.modules)
      info.put(BootLayout.commandLine)
      info.put(rsdp)  // 0 without ACPI
      info.put(BootLayout.memoryMap)
      info.put(UInt32(memoryMap.count))
      info.put(UInt32(0))
    }
    try memory.put(info, at: BootLayout.startInfo)
    if let initrd {
      let module = StateWriter.bytes { module in
        module.put(initrd.lowerBound)
        module.put(initrd.upperBound - initrd.lowerBound)
        module.put(UInt64(0))  // no command line of its own
        module.put(UInt64(0))
      }
      try memory.put(module, at: BootLayout.modules)
    }
    let map = StateWriter.bytes { map in
      for range in memoryMap {
        map.put(range.start)
        map.put(range.size)
        map.put(range.type)
        map.put(UInt32(0))
      }
    }
    try memory.put(map, at: BootLayout.memoryMap)
  }
}
