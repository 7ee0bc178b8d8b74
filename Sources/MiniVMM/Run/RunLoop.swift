internal import CKVM
internal import CLinux
internal import Devices
internal import Glibc
internal import GuestMemory

/// The life of one vCPU thread: run, answer exits, park when asked.
struct RunLoop: Sendable {
  let vcpu: VirtualCPU
  let memory: GuestMemory
  let control: RunControl
  let pio: Bus
  let mmio: Bus
  /// Empties this vCPU's dirty ring when it is full; false when pages have been lost.
  let dirtyRingFull: @Sendable (_ vcpu: Int) -> Bool
  let end: @Sendable (MachineEnd) -> Void

  /// The body of the thread.
  func run() {
    // Threads inherit a signal mask, and some starters (dispatch workers) block everything: kicks must get through.
    lx_signal_mask(lx_kick_signal(), 0)
    while true {
      switch control.requested {
      case .run: runGuest()
      case .pause: if control.park() == .stop { return }
      case .stop: return
      }
    }
  }

  /// Runs the guest until something else is asked for. An access that needed an answer is complete by then: KVM_RUN
  /// takes the answer in before it looks at immediate_exit.
  private func runGuest() {
    vcpu.forgetRegisters()
    while true {
      let result = vcpu.run()
      if result != 0 {
        // A kick, or a vCPU that has just been started by another: both may mean a request.
        guard result == -EINTR || result == -EAGAIN else { return fail(.runFailed(errno: -result)) }
        vcpu.setImmediateExit(false)
        if control.requested != .run { return }
        continue
      }
      switch vcpu.exitReason {
      case KVM_EXIT_IO: portAccess()
      case KVM_EXIT_MMIO: memoryAccess()
      case KVM_EXIT_INTR, KVM_EXIT_IRQ_WINDOW_OPEN: continue
      case KVM_EXIT_DIRTY_RING_FULL: guard dirtyRingFull(vcpu.index) else { return fail(.dirtyRingOverrun) }
      case KVM_EXIT_SHUTDOWN: return end(.tripleFault(try? RegisterDump(vcpu, memory)))
      case KVM_EXIT_SYSTEM_EVENT: return systemEvent()
      case KVM_EXIT_FAIL_ENTRY: return fail(.entryFailed(hardwareReason: vcpu.hardwareReason))
      case KVM_EXIT_INTERNAL_ERROR: return fail(.internalError(suberror: vcpu.internalError.suberror))
      // HLT included: the irqchip in the kernel handles it.
      case let reason: return fail(.unexpectedExit(reason: reason))
      }
    }
  }

  @inline(__always)
  private func portAccess() {
    guard let access = vcpu.portAccess else { return fail(.unexpectedExit(reason: KVM_EXIT_IO)) }
    // String instructions come as several values of one port.
    for index in 0..<access.count {
      if access.isWrite {
        pio.write(at: UInt64(access.port), size: access.size, value: UInt64(access.value(index)))
      } else {
        access.setValue(index, UInt32(truncatingIfNeeded: pio.read(at: UInt64(access.port), size: access.size)))
      }
    }
  }

  @inline(__always)
  private func memoryAccess() {
    let access = vcpu.mmio
    // KVM splits what is larger or crosses a page; odd sizes (3, 5, 6, 7) come from such splits.
    guard access.size == 1 || access.size == 2 || access.size == 4 || access.size == 8 else {
      if !access.isWrite { vcpu.mmioValue = ~0 }
      return
    }
    if access.isWrite {
      mmio.write(at: access.address, size: access.size, value: vcpu.mmioValue & mask(access.size))
    } else {
      vcpu.mmioValue = mmio.read(at: access.address, size: access.size)
    }
  }

  @inline(__always)
  private func mask(_ size: Int) -> UInt64 { size == 8 ? ~0 : (1 << UInt64(size * 8)) - 1 }

  private func systemEvent() {
    switch vcpu.systemEvent {
    case UInt32(KVM_SYSTEM_EVENT_SHUTDOWN): end(.poweroff)
    case UInt32(KVM_SYSTEM_EVENT_RESET): end(.reset(.systemEvent))
    case UInt32(KVM_SYSTEM_EVENT_CRASH): end(.guestCrash(.systemEvent))
    case let type: fail(.badSystemEvent(type: type))
    }
  }

  private func fail(_ kind: InternalError.Kind) {
    var (instruction, data): ([UInt8], [UInt64]) = ([], [])
    if case .internalError = kind { (instruction, data) = (vcpu.internalError.instruction, vcpu.internalError.data) }
    let registers = try? RegisterDump(vcpu, memory, instruction: instruction)
    end(.internalError(InternalError(kind: kind, vcpu: vcpu.index, registers: registers, data: data)))
  }
}
