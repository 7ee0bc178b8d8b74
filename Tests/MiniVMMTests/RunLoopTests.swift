import CKVM
import Devices
import GuestMemory
import Testing

@testable import MiniVMM

/// Everything that runs a virtual machine, one test after the other.
@Suite(.serialized, .enabled(if: noKVM == nil, "no KVM here")) struct MachineTests {}

extension MachineTests {
  @Suite("Family 15: platform") struct RunLoopTests {
    private func endOf(_ code: [UInt8], pio: [(Recorder, UInt64, UInt64)] = [], mmio: [(Recorder, UInt64, UInt64)] = [])
      throws -> MachineEnd
    {
      let machine = try makeMachine(code, pio: pio, mmio: mmio)
      try machine.start()
      let end = machine.waitForEnd()
      machine.stop()
      return end
    }

    @Test func sleepControl_powersOff() throws {
      #expect(try endOf(Code.powerOff) == .poweroff)
    }

    /// The registers that ACPI's tables name; another sleep type is none.
    @Test func sleepControlOfReducedHardware_powersOff() throws {
      #expect(try endOf(Code.out(0x606, 0x34) + Code.spin) == .poweroff)
      #expect(
        try endOf(Code.out(0x606, 0x20) + Code.out(0x607, 0x80) + Code.out(0x64, 0xfe)) == .reset(.keyboardController))
    }

    @Test func keyboardController_resets() throws {
      #expect(try endOf(Code.out(0x64, 0xfe) + Code.spin) == .reset(.keyboardController))
    }

    @Test func panicNotifier_readsOneAndReportsCrash() throws {
      // in al, 0x505; out 0x505, al: what it reads is what it may write
      let code: [UInt8] = [0x66, 0xba, 0x05, 0x05, 0xec, 0xee] + Code.spin
      #expect(try endOf(code) == .guestCrash(.panicNotifier))
    }

    /// lidt of an empty table; mov ebx, 0x12345678; ud2. KVM on AMD resets the vCPU before it tells.
    @Test func tripleFault_isAReset_withTheLastRegisters() throws {
      let code = Code.tripleFault.dropLast(2) + [0xbb, 0x78, 0x56, 0x34, 0x12] + Code.tripleFault.suffix(2)
      let end = try endOf(Array(code))
      guard case .tripleFault(let dump?) = end else {
        Issue.record("\(end)")
        return
      }
      let lines = dump.description.split(separator: "\n")
      #expect(lines.count <= 8 && dump.description.count < 1000)
      if lines.last?.contains("after a reset") == true { return }
      #expect(dump.rip == 0x20_000c && dump.cpl == 0)
      #expect(dump.instruction.prefix(2) == [0x0f, 0x0b])
      #expect(dump.description.contains("RBX 0x12345678"))
      #expect(lines.last?.hasPrefix("  instruction 0f 0b") == true)
    }

    /// fadd dword [0xd0000000]: no KVM's emulator has it, and where no RAM is every KVM needs its emulator.
    @Test func instructionThatKVMCannotEmulate_isNamedWithTheRegisters() throws {
      let end = try endOf([0xb8, 0x21, 0x43, 0x65, 0x07, 0xd8, 0x05, 0, 0, 0, 0xd0] + Code.spin)
      guard case .internalError(let error) = end else {
        Issue.record("\(end)")
        return
      }
      #expect(error.kind == .internalError(suberror: 1))
      let dump = try #require(end.registers)
      #expect(dump.rip == 0x20_0005 && dump.instruction.prefix(6) == [0xd8, 0x05, 0, 0, 0, 0xd0])
      #expect(dump.description.contains("RAX 0x7654321") && dump.description.count < 1000)
    }

    @Test func unmappedPort_readsAllOnes() throws {
      let port = Recorder()
      // in eax, 0xcf8; out 0x3f8, eax
      let code: [UInt8] = [0x66, 0xba, 0xf8, 0x0c, 0xed, 0x66, 0xba, 0xf8, 0x03, 0xef] + Code.powerOff
      #expect(try endOf(code, pio: [(port, 0x3f8, 4)]) == .poweroff)
      #expect(port.seen == [.init(offset: 0, size: 4, value: 0xffff_ffff)])
    }

    @Test func stringOutput_arrivesByteByByte() throws {
      let port = Recorder()
      // mov edx, 0x3f8; mov esi, 0x200000; mov ecx, 3; cld; rep outsb
      let code: [UInt8] =
        [0xba, 0xf8, 0x03, 0, 0, 0xbe, 0, 0, 0x20, 0, 0xb9, 3, 0, 0, 0, 0xfc, 0xf3, 0x6e] + Code.powerOff
      #expect(try endOf(code, pio: [(port, 0x3f8, 8)]) == .poweroff)
      #expect(port.seen.map(\.value) == [0xba, 0xf8, 0x03])
    }

    @Test func stringInput_fillsMemory() throws {
      let port = Recorder(answer: 0x5a)
      // mov edx, 0x3f8; mov edi, 0x300000; mov ecx, 4; cld; rep insb
      let code: [UInt8] =
        [0xba, 0xf8, 0x03, 0, 0, 0xbf, 0, 0, 0x30, 0, 0xb9, 4, 0, 0, 0, 0xfc, 0xf3, 0x6c] + Code.powerOff
      let machine = try makeMachine(code, pio: [(port, 0x3f8, 8)])
      try machine.start()
      #expect(machine.waitForEnd() == .poweroff)
      machine.stop()
      #expect(try machine.memory.load(UInt32.self, at: 0x30_0000) == 0x5a5a_5a5a)
    }

    @Test func mmio_readsAndWritesOfOneTwoAndFourBytes() throws {
      let device = Recorder(answer: 0x8182_8384)
      // mov eax,[window]; mov [window+4],eax; mov [window+8],ax; mov [window+10],al
      let code: [UInt8] =
        [0xa1, 0, 0x10, 0, 0xc0, 0xa3, 4, 0x10, 0, 0xc0, 0x66, 0xa3, 8, 0x10, 0, 0xc0, 0xa2, 10, 0x10, 0, 0xc0]
        + Code.powerOff
      #expect(try endOf(code, mmio: [(device, 0xc000_1000, 0x1000)]) == .poweroff)
      #expect(
        device.seen == [
          .init(offset: 0, size: 4, value: nil), .init(offset: 4, size: 4, value: 0x8182_8384),
          .init(offset: 8, size: 2, value: 0x8384), .init(offset: 10, size: 1, value: 0x84),
        ])
    }

    @Test func unmappedMMIO_readsAllOnes() throws {
      let port = Recorder()
      // mov eax,[0xd0000000]; out 0x3f8, eax
      let code: [UInt8] = [0xa1, 0, 0, 0, 0xd0, 0x66, 0xba, 0xf8, 0x03, 0xef] + Code.powerOff
      #expect(try endOf(code, pio: [(port, 0x3f8, 4)]) == .poweroff)
      #expect(port.seen.first?.value == 0xffff_ffff)
    }

    @Test func haltWithInterruptsOff_canBePausedAndStopped() throws {
      let machine = try makeMachine(Code.haltForever)
      try machine.start()
      machine.pause()
      machine.resume()
      machine.stop()
      #expect(machine.end == .stopped)
    }

    @Test(arguments: [1, 2, 4]) func pause_stopsEveryCPU(cpus: Int) throws {
      let machine = try makeMachine(Code.countForever, cpus: cpus)
      try machine.start()
      for _ in 0..<20 {
        #expect(try waitForCounter(machine.memory, above: 0))
        let report = machine.pause()
        #expect(report.vcpus > 0)
        let held = try machine.memory.load(UInt32.self, at: Code.counter)
        let held2 = try machine.memory.load(UInt32.self, at: Code.counter)
        #expect(held == held2)
        machine.resume()
        #expect(try waitForCounter(machine.memory, above: held))
      }
      machine.stop()
    }

    @Test func pause_completesThePendingPortRead() throws {
      let port = Recorder(answer: 7)
      // again: in al, 0x3f8; jmp again
      let machine = try makeMachine([0xba, 0xf8, 0x03, 0, 0, 0xec, 0xeb, 0xfd], pio: [(port, 0x3f8, 1)])
      try machine.start()
      port.wait(3)
      machine.pause()
      // Had the last read been left open, RAX would hold what was there before it.
      #expect(try machine.vcpus[0].regs().rax & 0xff == 7)
      #expect(try machine.vcpus[0].regs().rip >= 0x20_0005)
      machine.stop()
    }

    /// With asynchronous page faults, every load of a checkpoint would have a Linux guest walk a table of 256 locks; a hypercall of an
    /// interpreted kernel never ends.
    @Test func asynchronousPageFaults_andHypercallsOfAnInterpretedKernel_areNotOffered() throws {
      let features = 0x4000_0001
      // mov eax, features; cpuid; or eax, 1 << 31 (it was asked); mov [counter], eax
      let machine = try makeMachine(
        [0xb8] + (0..<4).map { UInt8(truncatingIfNeeded: features >> (8 * $0)) } + [0x0f, 0xa2]
          + [0x0d, 0, 0, 0, 0x80, 0xa3, 0, 0, 0x30, 0] + Code.powerOff)
      try machine.start()
      HostThread.waitReadable(machine.endDescriptor, timeoutMilliseconds: 10_000)
      machine.stop()
      let shown = try machine.memory.load(UInt32.self, at: Code.counter)
      #expect(shown >> 31 == 1 && shown & (1 << 4 | 1 << 10 | 1 << 14) == 0)
      #expect(ckvm_has_virtualization() != 0 || shown & (1 << 7 | 1 << 11 | 1 << 13) == 0)
      #expect(shown & 1 << 3 != 0, "kvmclock is")
    }

    @Test func endDescriptor_becomesReadable() throws {
      let machine = try makeMachine(Code.powerOff)
      try machine.start()
      HostThread.waitReadable(machine.endDescriptor, timeoutMilliseconds: 10_000)
      #expect(machine.end == .poweroff)
      machine.stop()
    }

    @Test func cpuCount_isBounded() throws {
      let memory = try GuestMemory(size: 16 << 20)
      for cpus in [0, 9, -1] {
        #expect(throws: MachineError.self) {
          try Machine(.init(cpus: cpus, memory: memory, eventLoop: try EventLoop()), kvm: try KVMSystem())
        }
      }
    }

    @Test func start_needsAKernel() throws {
      let machine = try makeMachine([], load: false)
      #expect(throws: MachineError.self) { try machine.start() }
    }
  }
}
