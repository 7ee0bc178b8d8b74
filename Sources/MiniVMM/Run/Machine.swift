internal import CKVM
internal import CLinux
public import Devices
public import GuestMemory
internal import Synchronization

/// A virtual machine: RAM, vCPUs with a thread each, a device thread, and the platform devices every guest expects.
///
/// Life: made, then loaded (``load(_:)``) or restored, then ``start()``; ``pause()`` and ``resume()`` any number of times;
/// it ends by itself or by ``stop()``. Calls come from one control thread at a time, never from a vCPU or device thread.
public final class Machine: Sendable {
  public static let maximumCPUs = 8

  public struct Configuration: Sendable {
    /// 1 to ``Machine/maximumCPUs``.
    public var cpus: Int
    public var memory: GuestMemory
    /// Ports of the caller's devices; the machine adds its own (power control, panic notifier, keyboard controller, clock).
    public var pio = Bus()
    public var mmio = Bus()
    /// Devices with state, in the order in which they are quiesced, saved and resumed.
    public var devices: [any MachineDevice] = []
    public var interrupts: [Interrupt] = []
    public var doorbells: [Doorbell] = []
    public var dirtyTracking = DirtyTracking.none
    public var eventLoop: EventLoop
    /// Called first thing on each thread the machine starts: the place to load its seccomp filter.
    public var threadStarted: @Sendable (SeccompFilters.ThreadKind) -> Void = { _ in }

    public init(cpus: Int, memory: GuestMemory, eventLoop: EventLoop) {
      self.cpus = cpus
      self.memory = memory
      self.eventLoop = eventLoop
    }
  }

  /// An interrupt line and the global system interrupt it raises (0 to 23; the MP table routes each to the IRQ of its
  /// number). The PIT has 0, the serial port of PCs 4, its clock 8.
  public struct Interrupt: Sendable {
    public var gsi: UInt32
    public var line: InterruptLine
    public init(gsi: UInt32, line: InterruptLine) {
      self.gsi = gsi
      self.line = line
    }
  }

  /// An eventfd that a 4-byte guest write of `value` to MMIO `address` signals without an exit, such as a queue's number
  /// at a virtio window's QueueNotify (+0x50).
  public struct Doorbell: Sendable {
    public var descriptor: CInt
    public var address: UInt64
    public var value: UInt32
    public init(descriptor: CInt, address: UInt64, value: UInt32) {
      self.descriptor = descriptor
      self.address = address
      self.value = value
    }
  }

  public let memory: GuestMemory
  public var cpus: Int { vcpus.count }
  /// An eventfd that becomes readable when the machine has ended; owned by the machine, not to be read from.
  public let endDescriptor: CInt

  let machine: VirtualMachine
  let vcpus: [VirtualCPU]
  let devices: [any MachineDevice]
  let eventLoop: EventLoop
  let control: RunControl
  let phase = Mutex(Phase.made)
  let lastResumed = Atomic<UInt64>(0)
  /// When it was paused last; 0 for a machine that was never, such as a restored one.
  let pausedAt = Atomic<UInt64>(0)
  private let loops: [RunLoop]
  private let threadStarted: @Sendable (SeccompFilters.ThreadKind) -> Void
  private let threads: ThreadTable

  /// Present when the configuration asked for dirty tracking.
  let dirtySource: (any DirtySource)?
  /// Model-specific registers that are part of saved state.
  let savedRegisters: RegisterList
  let xsaveSize: Int
  /// What KVM_GET_CLOCK and KVM_SET_CLOCK can (KVM_CLOCK_* flags).
  let clockFlags: Int

  enum Phase: Equatable {
    case made, ready, running, paused, stopped
    /// A state was taken in only in part.
    case failed
  }

  /// Whether no vCPU runs and none will by itself.
  var isHalted: Bool { phase.withLock { $0 != .running } }

  /// The vCPU threads, once started: what a kick needs. Vcpus whose threads don't exist yet need none.
  final class ThreadTable: Sendable {
    let vcpus: [VirtualCPU]
    let vcpuThreads = Mutex<[HostThread]>([])
    let deviceThread = Mutex<HostThread?>(nil)
    init(vcpus: [VirtualCPU]) { self.vcpus = vcpus }

    /// Gets every vCPU out of KVM_RUN. The request it shall find is already set.
    func kick() {
      for vcpu in vcpus { vcpu.setImmediateExit(true) }
      vcpuThreads.withLock { threads in threads.forEach { $0.signal(lx_kick_signal()) } }
    }
  }

  public init(_ configuration: Configuration, kvm: KVMSystem) throws(MachineError) {
    let limit = min(Self.maximumCPUs, kvm.capability(.maximumVCPUs))
    guard configuration.cpus >= 1, configuration.cpus <= limit else {
      throw .kvm(.cpuCount(requested: configuration.cpus, limit: limit))
    }
    let endDescriptor = lx_eventfd(0)
    guard endDescriptor >= 0 else { throw .host(HostError(operation: "eventfd", errno: -endDescriptor)) }
    let control = RunControl()
    do throws(KVMError) {
      let machine = try VirtualMachine(kvm, memory: configuration.memory)
      for interrupt in configuration.interrupts {
        try machine.addInterrupt(eventfd: interrupt.line.descriptor, gsi: interrupt.gsi)
      }
      for doorbell in configuration.doorbells {
        try machine.addDoorbell(eventfd: doorbell.descriptor, address: doorbell.address, value: doorbell.value)
      }
      self.machine = machine
      if case .ring(let entries) = configuration.dirtyTracking {
        try DirtyRings.enable(machine, kvm, entries: entries)
      }
      vcpus = try Self.makeVCPUs(configuration.cpus, machine, kvm)
      switch configuration.dirtyTracking {
      case .none: dirtySource = nil
      case .bitmap: dirtySource = DirtyBitmap(machine)
      case .ring(let entries): dirtySource = try DirtyRings(machine, vcpus, entries: entries)
      }
      if dirtySource != nil { try machine.mapMemory(logDirtyPages: true) }
      savedRegisters = try vcpus[0].readableRegisters(of: try kvm.msrIndexList())
      xsaveSize = kvm.xsaveSize
      clockFlags = kvm.capability(.clockFlags)
    } catch {
      lx_close(endDescriptor)
      throw .kvm(error)
    }
    let threads = ThreadTable(vcpus: vcpus)
    let end: @Sendable (MachineEnd) -> Void = { end in
      let ending = control.end(end)
      if ending == .known { return }
      if ending == .final { lx_eventfd_signal(endDescriptor) }
      threads.kick()
    }
    let platform = Platform(end: end)
    let pio: Bus
    do throws(MachineError) { pio = try platform.added(to: configuration.pio) } catch {
      lx_close(endDescriptor)
      throw error
    }
    let mmio = configuration.mmio
    let source = dirtySource
    loops = vcpus.map { vcpu in
      RunLoop(
        vcpu: vcpu, memory: configuration.memory, control: control, pio: pio, mmio: mmio,
        dirtyRingFull: { source?.overflow(vcpu: $0) ?? false }, end: end)
    }
    devices = platform.devices + configuration.devices
    memory = configuration.memory
    eventLoop = configuration.eventLoop
    threadStarted = configuration.threadStarted
    self.endDescriptor = endDescriptor
    self.control = control
    self.threads = threads
    self.endMachine = end
    for (index, device) in devices.enumerated() where devices[..<index].contains(where: { $0.name == device.name }) {
      throw .duplicateDevice(device.name)
    }
  }

  let endMachine: @Sendable (MachineEnd) -> Void

  deinit {
    stop()
    lx_close(endDescriptor)
  }

  // MARK: Booting

  /// Puts a kernel into RAM and the first vCPU at its entry. Once, on a new machine.
  public func load(_ source: BootSource) throws(MachineError) {
    try advance(from: [.made], to: .ready, else: "a kernel is loaded once, into a new machine")
    let entry: EntryPoint
    do throws(BootError) { entry = try source.load(into: memory, cpus: cpus) } catch { throw .boot(error) }
    do throws(KVMError) { try entry.apply(to: vcpus[0]) } catch { throw .kvm(error) }
  }

  // MARK: Running

  /// Starts the threads and lets the guest run.
  public func start() throws(MachineError) {
    try advance(from: [.ready], to: .paused, else: "a machine is started once, after a kernel or a state was loaded")
    _ = lx_install_kick_handler()
    let threadStarted = self.threadStarted
    do throws(HostError) {
      for device in devices { try device.start() }
      for loop in loops {
        control.threadStarts()
        let control = self.control
        do throws(HostError) {
          let thread = try HostThread.start(name: "vcpu\(loop.vcpu.index)") {
            threadStarted(.vcpu)
            loop.run()
            control.threadEnds()
          }
          threads.vcpuThreads.withLock { $0.append(thread) }
        } catch {
          control.threadEnds()
          throw error
        }
      }
      let eventLoop = self.eventLoop
      let thread = try HostThread.start(name: "devices") {
        threadStarted(.device)
        eventLoop.run()
      }
      threads.deviceThread.withLock { $0 = thread }
    } catch {
      stop()
      throw .host(error)
    }
    resume()
  }

  /// Why the machine ended; nil while it has not.
  public var end: MachineEnd? { control.end }

  /// Blocks until the machine ends.
  public func waitForEnd() -> MachineEnd { control.waitForEnd() }

  /// Ends the machine if it has not ended by itself, and returns when its threads are gone. Any number of times.
  public func stop() {
    endMachine(.stopped)
    phase.withLock { $0 = .stopped }
    eventLoop.stop()
    // The end may have come from a vCPU that has not kicked the others yet; a handle is not signalled after its join.
    threads.kick()
    let vcpuThreads = threads.vcpuThreads.withLock { threads in
      defer { threads = [] }
      return threads
    }
    for thread in vcpuThreads { thread.join() }
    let deviceThread = threads.deviceThread.withLock { $0.take() }
    deviceThread?.join()
    eventLoop.removeAll()
  }

  func kick() { threads.kick() }

  func forEachVCPUThread(_ body: (HostThread) -> Void) { threads.vcpuThreads.withLock { $0.forEach(body) } }

  func advance(from: [Phase], to: Phase, else reason: String) throws(MachineError) {
    let fits = phase.withLock { phase in
      guard from.contains(phase) else { return false }
      phase = to
      return true
    }
    guard fits else { throw .wrongPhase(reason) }
  }
}
