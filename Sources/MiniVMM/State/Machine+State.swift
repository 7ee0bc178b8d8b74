internal import CKVM
internal import CLinux
internal import Devices
internal import GuestMemory
internal import StateCodec
internal import Synchronization

/// What a restored guest's clocks do about the time that has passed since the save.
public enum ClockPolicy: Equatable, Sendable {
  /// Nothing: the guest sees no gap, and its wall clock stays behind by the time it was away.
  case continues
  /// They jump ahead by it (KVM_CLOCK_REALTIME), so that the wall clock is right; where the kernel can't, as above.
  case catchesUp
}

/// A machine's state as it was gathered.
public struct GatheredState: Sendable {
  let state: MachineState
  public var encoded: [UInt8] { state.encode() }
}

extension Machine {
  /// State of everything but RAM. The machine is paused. Order: devices, vCPUs, then what vCPUs' reading may have changed.
  public func save() throws(MachineError) -> [UInt8] { try gather().encoded }

  /// ``save()`` but for the encoding, which needs no machine that stands still.
  public func gather() throws(MachineError) -> GatheredState {
    guard phase.withLock({ $0 == .paused }), end == nil else {
      throw .wrongPhase(end == nil ? "a machine is saved while it is paused" : "the machine has ended")
    }
    let saved = devices.map(gather)
    do throws(KVMError) {
      let clock = try machine.clock()
      let hostTSC = clock.flags & UInt32(KVM_CLOCK_HOST_TSC) != 0 ? clock.host_tsc : nil
      var states: [VCPUState] = []
      for vcpu in vcpus { states.append(try vcpu.save(savedRegisters, xsaveSize: xsaveSize, hostTSC: hostTSC)) }
      let vm = VMState(
        pit: try machine.descriptor.getBytes(.getPIT2, [UInt8](repeating: 0, count: VMState.pitSize)),
        clock: clock.clock, realtime: clock.flags & UInt32(KVM_CLOCK_REALTIME) != 0 ? clock.realtime : nil,
        picMaster: try machine.irqchip(UInt8(KVM_IRQCHIP_PIC_MASTER)),
        picSlave: try machine.irqchip(UInt8(KVM_IRQCHIP_PIC_SLAVE)),
        ioapic: try machine.irqchip(UInt8(KVM_IRQCHIP_IOAPIC)))
      return GatheredState(state: MachineState(shape: shape, vm: vm, vcpus: states, devices: saved))
    } catch { throw .kvm(error) }
  }

  func gather(_ device: any MachineDevice) -> MachineState.Device {
    var writer = StateWriter(capacity: 512)
    device.save(to: &writer)
    return MachineState.Device(name: device.name, state: writer.bytes)
  }

  /// Takes in a saved state: into a new machine, which then starts where the saved one stood, or into a paused one. RAM
  /// has been put in place before. A state of another shape or with damaged fields is refused before anything changes; when
  /// KVM or a device refuses a value after that, the machine can't run any more.
  public func restore(_ bytes: [UInt8], clock policy: ClockPolicy = .catchesUp) throws(MachineError) {
    let before = phase.withLock { $0 }
    if let end { throw .wrongPhase("a state is not restored into a machine that has ended: \(end)") }
    guard [.made, .ready, .paused].contains(before) else {
      throw .wrongPhase("a state is restored into a machine that is new, not started or paused")
    }
    let state = try MachineState.decode(bytes, for: shape, xsaveSize: xsaveSize)
    let isNew = before == .made
    for (vcpu, saved) in zip(vcpus, state.vcpus) {
      if isNew { try vcpu.checkFeatures(saved.cpuid) }
      try vcpu.checkFrequency(saved.tscKHz)
    }
    phase.withLock { $0 = .failed }
    try restoreDevices(state, isTrial: false)
    do throws(KVMError) {
      let tsc = try restoreClock(state, policy)
      for (vcpu, saved) in zip(vcpus, state.vcpus) { try vcpu.restore(saved, setsCPUID: isNew, tsc: tsc) }
      // After the local APICs: an interrupt that waits in a controller is delivered to them as it is set.
      for chip in [state.vm.picMaster, state.vm.picSlave, state.vm.ioapic] { try machine.setIRQChip(chip) }
      try machine.descriptor.setBytes(.setPIT2, state.vm.pit)
    } catch { throw .kvm(error) }
    phase.withLock { $0 = before == .paused ? .paused : .ready }
  }

  /// Refuses a state that ``restore(_:clock:)`` would refuse, as far as that can be known before: all but a value that KVM does
  /// not take. Nothing changes. From any thread, while the machine runs or stands still.
  public func check(_ bytes: [UInt8]) throws(MachineError) {
    let state = try MachineState.decode(bytes, for: shape, xsaveSize: xsaveSize)
    try restoreDevices(state, isTrial: true)
    // A guest that runs has what it was started with; asking its vCPUs would wait for them to stop.
    guard phase.withLock({ $0 == .made }) else { return }
    for (vcpu, saved) in zip(vcpus, state.vcpus) {
      try vcpu.checkFeatures(saved.cpuid)
      try vcpu.checkFrequency(saved.tscKHz)
    }
  }

  private func restoreDevices(_ state: MachineState, isTrial: Bool) throws(MachineError) {
    for (device, saved) in zip(devices, state.devices) {
      var reader = StateReader(saved.state)
      do throws(StateError) {
        try device.restore(from: &reader, isTrial: isTrial)
        guard reader.remaining == 0 else {
          throw StateError.invalid("\(reader.remaining) bytes left over by \(device.name)")
        }
      } catch { throw .state(error) }
    }
  }

  /// Sets kvmclock, before any vCPU runs, and says how the time stamp counters go with it.
  private func restoreClock(_ state: MachineState, _ policy: ClockPolicy) throws(KVMError) -> VirtualCPU.TSCRestore {
    var clock = kvm_clock_data()
    clock.clock = state.vm.clock
    if policy == .catchesUp, let realtime = state.vm.realtime, clockFlags & Int(KVM_CLOCK_REALTIME) != 0 {
      clock.flags = UInt32(KVM_CLOCK_REALTIME)
      clock.realtime = realtime
    }
    try machine.setClock(clock)
    // Read back together with the host's counter: kvmclock and TSC then agree to the cycle.
    let now = try machine.clock()
    let nanoseconds = now.clock > state.vm.clock ? now.clock - state.vm.clock : 0
    let elapsed = UInt64(
      truncatingIfNeeded: UInt128(nanoseconds) * UInt128(state.vcpus.first?.tscKHz ?? 0) / 1_000_000)
    guard now.flags & UInt32(KVM_CLOCK_HOST_TSC) != 0, vcpus.allSatisfy({ $0.tscOffset != nil }) else {
      return .register(elapsed: elapsed)
    }
    return .offset(hostTSC: now.host_tsc, elapsed: elapsed)
  }

  private var shape: MachineState.Shape {
    MachineState.Shape(cpus: cpus, memorySize: memory.size, devices: devices.map(\.name))
  }
}

extension VirtualCPU {
  /// The guest decided by what it was shown; a bit it has seen must not go away.
  fileprivate func checkFeatures(_ saved: [UInt8]) throws(MachineError) {
    let here: HostProcessor
    do throws(KVMError) { here = HostProcessor(cpuid: try cpuid(), stateSize: 0) } catch { throw .kvm(error) }
    if let lack = here.firstLack(of: HostProcessor(cpuid: Self.cpuidEntries(saved), stateSize: 0)) {
      throw .missingCPUFeatures(leaf: lack.leaf, register: lack.register, bits: lack.bits)
    }
  }

  /// Lets the counter run at the saved rate: as it is, within what clocks differ anyway (250 ppm), or scaled.
  fileprivate func checkFrequency(_ saved: UInt32) throws(MachineError) {
    do throws(KVMError) {
      let here = try tscFrequency()
      let difference = saved > here ? saved - here : here - saved
      if UInt64(difference) * 1_000_000 <= UInt64(here) * 250 { return }
      if setTSCFrequency(saved) >= 0 { return }
      throw KVMError.tscFrequency(saved: saved, here: here)
    } catch { throw .kvm(error) }
  }
}
