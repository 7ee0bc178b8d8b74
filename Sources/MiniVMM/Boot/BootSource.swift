internal import GuestMemory

/// How a kernel is entered.
public enum BootProtocol: String, CaseIterable, Sendable {
  /// PVH for an ELF file with a PVH note, else the 64-bit Linux protocol.
  case auto
  case linux64
  case pvh
}

/// What a machine boots. The descriptors are the caller's, and only read while the machine loads them.
public struct BootSource: Sendable {
  /// Where a virtio-mmio device is, to be announced to the guest.
  public struct Window: Sendable {
    public var address: UInt64
    public var interrupt: UInt32
    public init(address: UInt64, interrupt: UInt32) {
      self.address = address
      self.interrupt = interrupt
    }
  }

  public var kernel: CInt
  public var initrd: CInt?
  public var commandLine: String
  public var bootProtocol: BootProtocol
  /// The guest finds them by ACPI or on its command line, never by both.
  public var devices: [Window]
  /// Whether there are ACPI tables.
  public var acpi: Bool

  public init(
    kernel: CInt, initrd: CInt? = nil, commandLine: String = "", bootProtocol: BootProtocol = .auto,
    devices: [Window] = [], acpi: Bool = true
  ) {
    self.kernel = kernel
    self.initrd = initrd
    self.commandLine = commandLine
    self.bootProtocol = bootProtocol
    self.devices = devices
    self.acpi = acpi
  }
}

extension BootSource {
  /// COMMAND_LINE_SIZE of x86 Linux is 2048, with the NUL.
  static let commandLineLimit = 2047

  /// Puts kernel, initrd, command line and tables into RAM, and says where to begin. RAM is new, all zero.
  func load(into memory: GuestMemory, cpus: Int) throws(BootError) -> EntryPoint {
    let file = try BootFile(.kernel, kernel)
    let head = try file.bytes(at: 0, limit: 1024)
    let entry: EntryPoint
    let kernelEnd: UInt64
    let readsACPI: Bool
    var setupHeader: [UInt8]?
    var commandLineLimit = Self.commandLineLimit
    var initrdLimit = min(BootLayout.initrdLimit, memory.low.end)

    if head.starts(with: [0x7f, 0x45, 0x4c, 0x46]) {
      let elf = try ELFKernel(file, memory: memory)
      switch (bootProtocol, elf.pvhEntry) {
      case (.auto, let pvh?), (.pvh, let pvh?):
        try elf.checkEntry(UInt64(pvh))
        entry = .pvh(pvh)
      case (.pvh, nil): throw .noPVHNote
      case (.auto, nil), (.linux64, _):
        try elf.checkEntry(elf.entry)
        entry = .linux64(elf.entry)
      }
      kernelEnd = elf.end
      try elf.load(file, into: memory)
      func holds(_ text: StaticString) -> Bool {
        elf.segments.contains { memory.holds(text, at: $0.address, count: $0.fileSize) }
      }
      readsACPI = holds(Self.rootPointer) && holds("Linux version ")
    } else if BzImage.matches(head) {
      guard bootProtocol != .pvh else { throw .protocolNotForBzImage }
      let image = try BzImage(file, head: head, memory: memory)
      entry = .linux64(image.entry)
      kernelEnd = image.end
      setupHeader = image.setupHeader
      commandLineLimit = image.commandLineLimit
      initrdLimit = min(initrdLimit, image.initrdLimit)
      try image.load(file, into: memory)
      readsACPI = memory.holds(Self.rootPointer, at: image.loadAddress, count: image.payloadSize)
    } else {
      throw Self.whatElse(head)
    }

    let line = Array(self.line(readsACPI: readsACPI).utf8)
    guard line.count <= commandLineLimit else { throw .commandLineTooLong(bytes: line.count, limit: commandLineLimit) }
    guard !line.contains(0) else { throw .commandLineHasNUL }
    try memory.put(line + [0], at: BootLayout.commandLine)

    let ramdisk = try initrd.map { descriptor throws(BootError) in
      try loadInitrd(descriptor, into: memory, above: kernelEnd, limit: initrdLimit)
    }
    let map = BootLayout.memoryMap(of: memory)
    let rsdp = acpi ? BootLayout.rsdp : 0
    switch entry {
    case .linux64:
      let page = ZeroPage(
        setupHeader: setupHeader, memoryMap: map, commandLineLimit: commandLineLimit, initrd: ramdisk, rsdp: rsdp)
      try memory.put(page.bytes, at: BootLayout.zeroPage)
    case .pvh: try PVHStartInfo.write(to: memory, memoryMap: map, initrd: ramdisk, rsdp: rsdp)
    }
    if acpi { try ACPITables.write(to: memory, cpus: cpus, devices: devices) }
    try MPTable.write(to: memory, cpus: cpus)
    try entry.writeTables(to: memory)
    return entry
  }

  /// What a kernel that looks for ACPI tables must have in it. A bzImage since Linux 5.0 has it in its decompressor too.
  private static let rootPointer: StaticString = "RSD PTR "

  /// The command line, with the words that announce the devices to a guest that does not find them by ACPI. A Linux that can do
  /// both would try to drive each device twice.
  ///
  /// The words go first: behind a stand-alone `--` or an open quote, Linux would not see them.
  private func line(readsACPI: Bool) -> String {
    let isOff = commandLine.split(whereSeparator: \.isWhitespace).prefix { $0 != "--" }.contains("acpi=off")
    let words = devices.map { "virtio_mmio.device=4K@\(hex($0.address)):\($0.interrupt)" }
    return ((acpi && readsACPI && !isOff ? [] : words) + (commandLine.isEmpty ? [] : [commandLine]))
      .joined(separator: " ")
  }

  /// At the top of low RAM, page-aligned, clear of the kernel.
  private func loadInitrd(
    _ descriptor: CInt, into memory: GuestMemory, above kernelEnd: UInt64, limit: UInt64
  ) throws(BootError) -> Range<UInt64> {
    let file = try BootFile(.initrd, descriptor)
    let size = file.size
    let floor = max(kernelEnd, BootLayout.kernelStart)
    let room = limit > floor ? limit - floor : 0
    guard size <= room else { throw .initrdDoesNotFit(bytes: size, room: room) }
    let start = (limit - size) & ~(GuestMemory.pageSize - 1)
    guard start >= floor else { throw .initrdDoesNotFit(bytes: size, room: room) }
    try file.load(at: 0, count: size, into: memory, at: start)
    return start..<start + size
  }

  /// A name for what was given instead of a kernel.
  private static func whatElse(_ head: [UInt8]) -> BootError {
    let magic: [([UInt8], String)] = [
      ([0x1f, 0x8b], "gzip"), ([0xfd, 0x37, 0x7a, 0x58, 0x5a], "xz"), ([0x28, 0xb5, 0x2f, 0xfd], "zstd"),
      ([0x42, 0x5a, 0x68], "bzip2"), ([0x04, 0x22, 0x4d, 0x18], "lz4"),
    ]
    if let (_, name) = magic.first(where: { head.starts(with: $0.0) }) { return .kernelIsCompressed(name) }
    let isText = head.prefix(512).allSatisfy { $0 >= 0x20 || [0x09, 0x0a, 0x0d].contains($0) }
    return isText ? .kernelIsText : .unknownKernelFormat
  }
}
