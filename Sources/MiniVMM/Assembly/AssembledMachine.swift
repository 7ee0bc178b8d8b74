internal import CLinux
public import Devices
public import GuestMemory
internal import VirtioLayout

/// A machine with its devices in place: serial port, disks, network cards and an entropy source, each virtio device in
/// a window of its own from 0xc0001000 on with an interrupt of its own from 5 on.
public final class AssembledMachine: Sendable {
  static let firstWindow: UInt64 = 0xc000_1000
  static let serialPort: UInt64 = 0x3f8
  static let serialInterrupt: UInt32 = 4
  /// IOAPIC inputs that no PC device has: not the timer, keyboard, cascade, serial port, clock and coprocessor.
  static let interrupts: [UInt32] = [5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]

  public let machine: Machine
  public let memory: GuestMemory
  public let serial: Serial8250
  /// What the guest and who replicates it say to each other.
  public let pair: PairRegisters
  public let transports: [VirtioMMIO]
  public let cards: [NetDevice]
  /// Load ``SeccompFilters/ThreadKind/control`` from here into the thread that goes on controlling the machine.
  public let filters: SeccompFilters
  private let disks: [BlockDevice]

  /// Opens everything the description names and makes the machine. No thread starts yet.
  public init(_ description: MachineDescription, kvm: KVMSystem) throws(AssemblyError) {
    guard description.disks.count + description.cards.count + 1 <= Self.interrupts.count else {
      throw .tooManyDevices(limit: Self.interrupts.count)
    }
    let filters = try Self.seccomp { () throws(SeccompError) in
      try SeccompFilters(
        mode: description.seccomp, exitCode: description.seccompExitCode,
        reconnects: description.cards.contains { if case .socket = $0.host { true } else { false } })
    }
    let memory = try Self.memory { () throws(GuestMemoryError) in
      try GuestMemory(
        size: description.memory, rollsBack: description.rollsBack, hugePages: description.hugePages)
    }

    var named: [(name: String, device: any VirtioDevice)] = []
    var disks: [BlockDevice] = []
    var cards: [NetDevice] = []
    for (index, disk) in description.disks.enumerated() {
      let file: any Disk = try Self.disk { () throws(DiskError) in
        if let opened = disk.opened { return opened }
        return try DiskFile(path: disk.path, readOnly: disk.readOnly, isRaw: disk.isRaw)
      }
      let device = try Self.host { () throws(HostError) in
        try BlockDevice(
          disk: file, serial: "minivmm-\(index)", onWorkerStart: { Self.restrict(filters, .disk) })
      }
      disks.append(device)
      named.append(("blk\(index)", device))
    }
    for (index, card) in description.cards.enumerated() {
      let mac = card.mac ?? MachineDescription.Card.defaultMAC(index)
      let tell = description.tell
      let device = NetDevice(backend: try Self.backend(card.host), mac: mac) { isThere in
        tell(MachineDescription.Card.notice(index, card.host, isThere: isThere))
      }
      cards.append(device)
      named.append(("net\(index)", device))
    }
    named.append(("rng0", Entropy()))

    let pairLine = try Self.host { () throws(HostError) in try InterruptLine() }
    let pair = PairRegisters(memory, line: pairLine)
    var (configuration, serial, transports) = try Self.host { () throws(HostError) in
      try Self.place(named, pair, description, memory, filters)
    }
    configuration.interrupts.append(Machine.Interrupt(gsi: PairRegister.interrupt, line: pairLine))
    do throws(MachineError) { machine = try Machine(configuration, kvm: kvm) } catch { throw .machine(error) }
    self.filters = filters
    self.memory = memory
    self.serial = serial
    self.pair = pair
    self.transports = transports
    self.disks = disks
    self.cards = cards
  }

  /// Gives every device its window, interrupt and doorbells.
  private static func place(
    _ named: [(name: String, device: any VirtioDevice)], _ pair: PairRegisters, _ description: MachineDescription,
    _ memory: GuestMemory,
    _ filters: SeccompFilters
  ) throws(HostError) -> (Machine.Configuration, Serial8250, [VirtioMMIO]) {
    let loop = try EventLoop()
    var configuration = Machine.Configuration(cpus: description.cpus, memory: memory, eventLoop: loop)
    configuration.dirtyTracking = description.dirtyTracking
    configuration.threadStarted = { kind in Self.restrict(filters, kind) }
    let serialLine = try InterruptLine()
    let serial = try Serial8250(line: serialLine)
    if let console = description.console { try serial.attach(to: loop, sink: console) }
    _ = configuration.pio.add(serial, at: Self.serialPort, size: Serial8250.portCount)
    configuration.interrupts.append(Machine.Interrupt(gsi: Self.serialInterrupt, line: serialLine))
    configuration.devices.append(serial)
    _ = configuration.mmio.add(pair, at: PairRegister.address, size: PairRegister.windowSize)
    configuration.devices.append(pair)
    var transports: [VirtioMMIO] = []
    for (index, entry) in named.enumerated() {
      let line = try InterruptLine()
      let transport = try VirtioMMIO(name: entry.name, device: entry.device, memory: memory, line: line, loop: loop)
      let window = Self.window(index)
      _ = configuration.mmio.add(transport, at: window, size: MMIORegister.windowSize)
      configuration.interrupts.append(Machine.Interrupt(gsi: Self.interrupts[index], line: line))
      configuration.devices.append(transport)
      for (queue, descriptor) in transport.notifyDescriptors.enumerated() {
        configuration.doorbells.append(
          Machine.Doorbell(descriptor: descriptor, address: window + MMIORegister.queueNotify, value: UInt32(queue)))
      }
      transports.append(transport)
    }
    return (configuration, serial, transports)
  }

  /// Where the guest finds the virtio devices, for ``BootSource/devices``.
  public var windows: [BootSource.Window] {
    transports.indices.map { BootSource.Window(address: Self.window($0), interrupt: Self.interrupts[$0]) }
  }

  /// What each disk is known by. The machine stands still, or has not started.
  public func identifyDisks() -> [DiskIdentity] { disks.map { $0.identify() } }

  /// Ends the machine and its disks' threads.
  public func shutDown() {
    machine.stop()
    for disk in disks { disk.shutDown() }
  }

  private static func window(_ index: Int) -> UInt64 { firstWindow + UInt64(index) * MMIORegister.windowSize }

  private static func backend(_ host: MachineDescription.Card.Host) throws(AssemblyError) -> any FrameBackend {
    do throws(NetBackendError) {
      switch host {
      case .tap(let name): return try TapBackend(name: name)
      case .tapDescriptor(let number): return try TapBackend(handedOver: number)
      case .socket(let path): return try SocketBackend(path: path)
      case .custom(let backend): return backend
      }
    } catch { throw .card(error) }
  }

  /// A thread that can't be restricted must not run: what it would do is unchecked.
  public static func restrict(_ filters: SeccompFilters, _ kind: SeccompFilters.ThreadKind) {
    do throws(SeccompError) { try filters.load(kind) } catch {
      let line = Array("minivmm: \(error)\n".utf8)
      _ = unsafe line.withUnsafeBytes { unsafe lx_write(2, $0.baseAddress, $0.count) }
      lx_exit_now(71)
    }
  }

  private static func host<R>(_ body: () throws(HostError) -> R) throws(AssemblyError) -> R {
    do throws(HostError) { return try body() } catch { throw .host(error) }
  }

  private static func disk<R>(_ body: () throws(DiskError) -> R) throws(AssemblyError) -> R {
    do throws(DiskError) { return try body() } catch { throw .disk(error) }
  }

  private static func memory<R>(_ body: () throws(GuestMemoryError) -> R) throws(AssemblyError) -> R {
    do throws(GuestMemoryError) { return try body() } catch { throw .memory(error) }
  }

  private static func seccomp<R>(_ body: () throws(SeccompError) -> R) throws(AssemblyError) -> R {
    do throws(SeccompError) { return try body() } catch { throw .seccomp(error) }
  }
}
