import CKVM
import Glibc
import GuestMemory
import Testing

@testable import MiniVMM

extension MachineTests {
  /// Registers that KVM_RUN leaves as a pause ends it are saved in place of what system calls would give: the same, or not used.
  @Suite struct LeftRegistersTests {
    /// mov dword [0xfee000f0], 0x1ff: APIC on; then counts.
    private static let code = [0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00] + Code.countForever

    private func pausedMachine() throws -> Machine {
      let machine = try makeMachine(Self.code)
      try machine.start()
      try #require(try waitForCounter(machine.memory, above: 100))
      machine.pause()
      return machine
    }

    private func save(_ machine: Machine) throws -> VCPUState {
      let shape = MachineState.Shape(cpus: 1, memorySize: machine.memory.size, devices: ["i8042", "rtc"])
      return try MachineState.decode(try machine.save(), for: shape, xsaveSize: machine.xsaveSize).vcpus[0]
    }

    /// What system calls give.
    private func read(_ machine: Machine) throws -> (regs: [UInt8], sregs: [UInt8]) {
      let regs = try machine.vcpus[0].regs()
      let sregs = try machine.vcpus[0].sregs()
      return unsafe (withUnsafeBytes(of: regs) { unsafe Array($0) }, withUnsafeBytes(of: sregs) { unsafe Array($0) })
    }

    @Test func everyPause_leavesThem() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      for _ in 0..<20 {
        try #require(machine.vcpus[0].leftRegisters != nil)
        let (saved, wanted) = (try save(machine), try read(machine))
        #expect(saved.regs == wanted.regs)
        #expect(saved.sregs == wanted.sregs)
        let before: UInt32 = try machine.memory.load(at: Code.counter)
        machine.resume()
        #expect(try waitForCounter(machine.memory, above: before &+ 100))
        machine.pause()
      }
    }

    @Test func restoredInAPause_areNotThoseOfBefore() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      let state = try machine.save()
      let old = try save(machine)
      machine.resume()
      #expect(try waitForCounter(machine.memory, above: try machine.memory.load(at: Code.counter) &+ 100))
      machine.pause()
      #expect(try save(machine).regs != old.regs)
      try machine.restore(state)
      #expect(try save(machine).regs == old.regs)
    }

    /// As one by one, again and again.
    @Test func registerList_isWhatTheVCPUHas() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      let vcpu = machine.vcpus[0]
      // IA32_SYSENTER_CS, _ESP, _EIP; AMD keeps 32 bits of each.
      let indices: [UInt32] = [0x174, 0x175, 0x176]
      let list = RegisterList(indices)
      for value in [0x1234_5678, 7] as [UInt64] {
        try vcpu.setMSRs([kvm_msr_entry(index: 0x175, reserved: 0, data: value)])
        let read = try list.read(vcpu.descriptor)
        #expect(read.map(\.index) == indices)
        #expect(read.map(\.value) == (try vcpu.msrs(indices[...]).map(\.data)) && read[1].value == value)
      }
    }

    /// KVM_GET_MSRS stops at it; what was after it would be missing from the saved state, and no restore would notice.
    @Test func registerThatKVMNoLongerReads_failsTheSave_byItsNumber() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      let list = RegisterList([0x174, 0x4fff_ffff, 0x176])  // none has the second number
      #expect(throws: KVMError.registerUnreadable(msr: 0x4fff_ffff)) { try list.read(machine.vcpus[0].descriptor) }
      #expect(throws: KVMError.registerUnreadable(msr: 0x4fff_ffff)) {
        try machine.vcpus[0].save(list, xsaveSize: machine.xsaveSize, hostTSC: nil)
      }
      #expect("\(KVMError.registerUnreadable(msr: 0x4fff_ffff))".contains("0x4fffffff"))
    }

    /// Found as the machine is made: one that this host's KVM lists and does not read is left out, and those after it stay.
    @Test func listedRegisterThatKVMDoesNotRead_isLeftOut() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      let vcpu = machine.vcpus[0]
      let list = try vcpu.readableRegisters(of: [0x174, 0x4fff_ffff, 0x4fff_fffe, 0x176])
      let read = try list.read(vcpu.descriptor).map(\.index)
      #expect(
        read.prefix(2) == [0x174, 0x176] && read.dropFirst(2).allSatisfy { $0 == VirtualCPU.tscDeadlineRegister })
    }

    /// KVM adds the interrupt that is on its way to what a run has left before, and takes none away.
    @Test func anInterruptOfBefore_isNotSaved() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      let vcpu = machine.vcpus[0]
      let events = try save(machine).events
      var sregs = try vcpu.sregs()
      sregs.interrupt_bitmap.1 = 1
      try vcpu.setSregs(sregs)
      vcpu.wantRegisters()
      vcpu.setImmediateExit(true)
      #expect(vcpu.run() == -EINTR)
      try vcpu.descriptor.setBytes(.setVCPUEvents, events)
      #expect(vcpu.run() == -EINTR)
      try #require(vcpu.leftRegisters != nil)
      #expect(try save(machine).sregs == read(machine).sregs)
    }

    /// An INIT that arrives after a vCPU has stopped is taken in as its state is read, and resets its registers.
    @Test func initInAPause_isNotMissed() throws {
      let machine = try pausedMachine()
      defer { machine.stop() }
      // Delivery mode INIT, to APIC 0 (Intel SDM vol. 3, 11.11).
      var message = kvm_msi()
      message.address_lo = 0xfee0_0000
      message.data = 5 << 8
      try machine.machine.descriptor.set(try #require(KVMRequest(rawValue: 0x4020_aea5)), message)  // KVM_SIGNAL_MSI
      let saved = try save(machine)
      let regs = try machine.vcpus[0].regs()
      #expect(regs.rip == 0xfff0)
      #expect(try read(machine).regs == saved.regs)
      #expect(try read(machine).sregs == saved.sregs)
    }
  }
}
