import CKVM
import Devices
import GuestMemory
import StateCodec
import Testing

@testable import MiniVMM

extension MachineTests {
  @Suite struct SaveRestoreTests {
    private func copyRAM(from: Machine, to: Machine) throws {
      for region in from.memory.regions {
        try to.memory.write(try from.memory.bytes(at: region.start, count: Int(region.size)), at: region.start)
      }
    }

    private func stateOfASpinningMachine() throws -> MachineState {
      let machine = try makeMachine(Code.spin)
      try machine.start()
      machine.pause()
      let shape = MachineState.Shape(cpus: 1, memorySize: machine.memory.size, devices: ["i8042", "rtc"])
      defer { machine.stop() }
      return try MachineState.decode(try machine.save(), for: shape, xsaveSize: machine.xsaveSize)
    }

    @Test(arguments: [1, 2]) func restoredMachine_goesOnWhereTheSavedOneStood(cpus: Int) throws {
      let first = try makeMachine(Code.countForever, cpus: cpus)
      try first.start()
      #expect(try waitForCounter(first.memory, above: 1000))
      first.pause()
      let state = try first.save()
      let ecx = try first.vcpus[0].regs().rcx

      let second = try makeMachine([], cpus: cpus, load: false)
      try copyRAM(from: first, to: second)
      first.stop()
      try second.restore(state)
      #expect(try second.vcpus[0].regs().rcx == ecx)
      try second.start()
      #expect(try waitForCounter(second.memory, above: UInt32(ecx)))
      second.stop()
    }

    @Test func saveOfARestoredMachine_equalsTheFirst() throws {
      let first = try makeMachine(Code.countForever)
      try first.start()
      #expect(try waitForCounter(first.memory, above: 10))
      first.pause()
      let shape = MachineState.Shape(cpus: 1, memorySize: first.memory.size, devices: ["i8042", "rtc"])
      let saved = try MachineState.decode(try first.save(), for: shape, xsaveSize: first.xsaveSize)
      let second = try makeMachine([], load: false)
      try copyRAM(from: first, to: second)
      try second.restore(saved.encode(), clock: .continues)
      try second.start()
      second.pause()
      // Back to the saved state, in place, after it ran.
      try second.restore(saved.encode(), clock: .continues)
      let again = try MachineState.decode(try second.save(), for: shape, xsaveSize: second.xsaveSize)
      #expect(again.vcpus[0].regs == saved.vcpus[0].regs)
      #expect(again.vcpus[0].sregs == saved.vcpus[0].sregs)
      #expect(again.vcpus[0].xsave == saved.vcpus[0].xsave)
      #expect(again.vcpus[0].mpState == saved.vcpus[0].mpState)
      #expect(again.vcpus[0].events == saved.vcpus[0].events)
      #expect(again.vcpus[0].lapic == saved.vcpus[0].lapic)
      #expect(again.devices == saved.devices)
      #expect(again.vm.ioapic == saved.vm.ioapic)
      #expect(again.vm.clock >= saved.vm.clock)
      #expect(again.vm.clock - saved.vm.clock < 1_000_000_000)
      #expect(again.vcpus[0].tsc >= saved.vcpus[0].tsc)
      first.stop()
      second.stop()
    }

    @Test func clock_catchesUpOnlyWhenAsked() throws {
      var saved = try stateOfASpinningMachine()
      guard let realtime = saved.vm.realtime else { return }
      // As if it had been saved an hour ago.
      saved.vm.realtime = realtime - 3600 * 1_000_000_000
      for (policy, jumps) in [(ClockPolicy.continues, false), (.catchesUp, true)] {
        let second = try makeMachine([], load: false)
        try second.restore(saved.encode(), clock: policy)
        let elapsed = try second.machine.clock().clock - saved.vm.clock
        #expect((elapsed >= 3600 * 1_000_000_000) == jumps)
        #expect(elapsed < 3700 * 1_000_000_000)
      }
    }

    @Test func save_refusesARunningMachine() throws {
      let machine = try makeMachine(Code.spin)
      try machine.start()
      #expect(throws: MachineError.self) { try machine.save() }
      machine.stop()
    }

    @Test func restore_namesTheDifferenceInShape() throws {
      let first = try makeMachine(Code.spin)
      try first.start()
      first.pause()
      let state = try first.save()
      first.stop()
      let twoCPUs = try makeMachine([], cpus: 2, load: false)
      #expect(throws: MachineError.differentShape(what: "CPUs:", saved: "1", here: "2")) { try twoCPUs.restore(state) }
      let moreRAM = try makeMachine([], mebibytes: 32, load: false)
      #expect(throws: MachineError.self) { try moreRAM.restore(state) }
      // Refused as a whole: it can still be given the right one's kernel.
      let file = MemoryFile(TestELF(code: Code.powerOff).bytes)
      try moreRAM.load(BootSource(kernel: file.descriptor))
      try moreRAM.start()
      #expect(moreRAM.waitForEnd() == .poweroff)
      moreRAM.stop()
    }

    /// What a guest was offered it may use: also of KVM's own features, such as interrupts by hypercall.
    @Test func restore_refusesAGuestThatWasOfferedMore() throws {
      var saved = try stateOfASpinningMachine()
      let entries = VirtualCPU.cpuidEntries(saved.vcpus[0].cpuid)
      let index = try #require(entries.firstIndex { $0.function == 0x4000_0001 })
      // Bit 30 of EAX, which no KVM has.
      saved.vcpus[0].cpuid[index * VCPUState.cpuidEntrySize + 15] |= 0x40
      let second = try makeMachine([], load: false)
      let missing = MachineError.missingCPUFeatures(leaf: 0x4000_0001, register: "EAX", bits: 1 << 30)
      #expect(throws: missing) { try second.check(saved.encode()) }
      #expect(throws: missing) { try second.restore(saved.encode()) }
    }

    @Test func restore_refusesEveryTruncation() throws {
      let first = try makeMachine(Code.spin)
      try first.start()
      first.pause()
      let state = try first.save()
      first.stop()
      let second = try makeMachine([], load: false)
      for length in stride(from: 0, to: state.count, by: 97) {
        #expect(throws: MachineError.self) { try second.restore(Array(state[..<length])) }
      }
      #expect(throws: MachineError.self) { try second.restore(state + [0]) }
      try second.restore(state)
    }

    @Test func armedDeadlineTimer_isNotLost() throws {
      let machine = try makeMachine(Code.spin)
      try machine.start()
      machine.pause()
      let state = try machine.save()
      let shape = MachineState.Shape(cpus: 1, memorySize: machine.memory.size, devices: ["i8042", "rtc"])
      let vcpu = try MachineState.decode(state, for: shape, xsaveSize: machine.xsaveSize).vcpus[0]
      // No timer armed: the deadline stays as it is.
      #expect(vcpu.tscDeadline == nil || vcpu.tscDeadline == 0)
      // In TSC-deadline mode, unmasked, with deadline 0: the interrupt is on the way.
      var lapic = vcpu.lapic
      lapic.replaceSubrange(0x320..<0x324, with: [0xec, 0, 0x04, 0])
      try machine.vcpus[0].descriptor.setBytes(.setLAPIC, lapic)
      let armed = try machine.vcpus[0].save(machine.savedRegisters, xsaveSize: machine.xsaveSize, hostTSC: nil)
      if let deadline = armed.tscDeadline { #expect(deadline == max(1, armed.tsc)) }
      machine.stop()
    }
  }
}
