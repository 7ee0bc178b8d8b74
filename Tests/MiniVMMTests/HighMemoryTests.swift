import CKVM
import CLinux
import Glibc
import GuestMemory
import Harness
import Testing

@testable import MiniVMM

extension MachineTests {
  /// A machine of 5 GiB: 3 below the hole, 2 above 4 GiB. Only touched pages take memory of the host.
  @Suite("Family 15: RAM above 4 GiB", .timeLimit(.minutes(Environment.patience))) struct HighMemoryTests {
    private static let mebibytes: UInt64 = 5 << 10
    /// The page above 4 GiB that guests here count in, and its index among all pages (the hole has none).
    private static let page: UInt64 = GuestMemory.highStart + 0x7654_3000
    private static let index = Int((GuestMemory.holeStart + 0x7654_3000) / GuestMemory.pageSize)

    /// In user mode: for (;;) ++*(u32 *)0x40000000
    private static let count: [UInt8] = [0xff, 0x04, 0x25, 0, 0, 0, 0x40, 0xeb, 0xf7]

    /// A guest that counts in ``page`` for ever.
    private func makeCounter(_ tracking: DirtyTracking = .none) throws -> Machine {
      let machine = try makeUserModeMachine(Self.count, mebibytes: Self.mebibytes, dirtyTracking: tracking)
      try machine.memory.store(Self.page | UserMode.entryBits, at: UserMode.windowEntry)
      return machine
    }

    @Test func memoryMap_leavesTheHoleOut() throws {
      let memory = try GuestMemory(size: Self.mebibytes << 20)
      #expect(memory.regions.map(\.start) == [0, 4 << 30])
      #expect(memory.regions.map(\.end) == [3 << 30, 6 << 30])
      #expect(memory.regions.map(\.fileOffset) == [0, 3 << 30])
      let usable = BootLayout.memoryMap(of: memory).filter { $0.type == 1 }.suffix(2)
      #expect(usable.map(\.start) == [1 << 20, 4 << 30])
      #expect(usable.map { $0.start + $0.size } == [3 << 30, 6 << 30])
    }

    /// What the guest reads: the last entry of the e820 map in the zero page (64-bit protocol).
    @Test func zeroPage_tellsOfRAMAbove4GiB() throws {
      let memory = try GuestMemory(size: Self.mebibytes << 20)
      let file = MemoryFile(TestELF(code: Code.powerOff, pvhEntry: nil).bytes)
      _ = try BootSource(kernel: file.descriptor).load(into: memory, cpus: 1)
      let entries = try memory.load(UInt8.self, at: BootLayout.zeroPage + 0x1e8)
      let last = BootLayout.zeroPage + 0x2d0 + 20 * UInt64(entries - 1)
      #expect(try memory.load(UInt64.self, at: last) == 4 << 30)
      #expect(try memory.load(UInt64.self, at: last + 8) == 2 << 30)
      #expect(try memory.load(UInt32.self, at: last + 16) == 1)
    }

    /// The same in PVH's memory map.
    @Test func pvhStartInfo_tellsOfRAMAbove4GiB() throws {
      let memory = try GuestMemory(size: Self.mebibytes << 20)
      let file = MemoryFile(TestELF(code: Code.powerOff).bytes)
      _ = try BootSource(kernel: file.descriptor).load(into: memory, cpus: 1)
      let map = try memory.load(UInt64.self, at: BootLayout.startInfo + 40)
      let entries = try memory.load(UInt32.self, at: BootLayout.startInfo + 48)
      let last = map + 24 * UInt64(entries - 1)
      #expect(try memory.load(UInt64.self, at: last) == 4 << 30)
      #expect(try memory.load(UInt64.self, at: last + 8) == 2 << 30)
      #expect(try memory.load(UInt32.self, at: last + 16) == 1)
    }

    /// The initial ramdisk goes where every loader's 32-bit field reaches: below the hole.
    @Test func initrd_liesBelowTheHole() throws {
      let memory = try GuestMemory(size: Self.mebibytes << 20)
      let (kernel, initrd) = (MemoryFile(TestELF(code: Code.powerOff).bytes), MemoryFile([1, 2, 3]))
      _ = try BootSource(kernel: kernel.descriptor, initrd: initrd.descriptor).load(into: memory, cpus: 1)
      let start = try memory.load(UInt64.self, at: BootLayout.modules)
      #expect(start < GuestMemory.holeStart)
      #expect(try memory.bytes(at: start, count: 3) == [1, 2, 3])
    }

    @Test(arguments: [DirtyTracking.bitmap, .ring(entries: 1024)])
    func pagesWrittenAbove4GiB_areFoundEachTime(tracking: DirtyTracking) throws {
      let machine: Machine
      do { machine = try makeCounter(tracking) } catch MachineError.kvm(.missingCapability) { return }
      var pages = PageSet(count: machine.memory.pageCount)
      try machine.harvestDirtyPages(into: &pages)
      #expect(!pages.contains(Self.index))
      try machine.start()
      for round in 0..<5 {
        let before = try machine.memory.load(UInt32.self, at: Self.page)
        #expect(try waitForCounter(machine.memory, at: Self.page, above: before))
        machine.pause()
        // The VMM's own write beside the guest's: the last page of all.
        try machine.memory.store(UInt32(round), at: machine.memory.high.end - 4)
        pages.removeAll()
        try machine.harvestDirtyPages(into: &pages)
        #expect(pages.contains(Self.index), "round \(round)")
        #expect(pages.contains(machine.memory.pageCount - 1))
        // Beyond them only what KVM walks through: page tables and the code's page.
        #expect(pages.population <= 2 + 6)
        machine.resume()
      }
      machine.stop()
    }

    /// A snapshot keeps RAM above 4 GiB in its place, leaves out what nobody touched, and the guest goes on in it.
    @Test func snapshot_keepsRAMAbove4GiB_andTheGuestGoesOn() throws {
      let first = try makeCounter()
      try first.memory.store(UInt64(0x1122_3344_5566_7788), at: first.memory.high.end - 8)
      try first.start()
      #expect(try waitForCounter(first.memory, at: Self.page, above: 1000))
      first.pause()
      let counted = try first.memory.load(UInt32.self, at: Self.page)
      let file = unsafe lx_memfd_plain("snapshot-test")
      defer { close(file) }
      let size = try SnapshotFile.write(state: try first.save(), memory: first.memory, to: file)
      first.stop()
      #expect(size < 1 << 20, "5 GiB of which a few pages were touched")

      let second = try makeMachine([], mebibytes: Self.mebibytes, load: false)
      #expect(try SnapshotFile.header(of: file).memorySize == second.memory.size)
      let state = try SnapshotFile.read(from: file, into: second.memory)
      #expect(try second.memory.load(UInt32.self, at: Self.page) == counted)
      #expect(try second.memory.load(UInt64.self, at: second.memory.high.end - 8) == 0x1122_3344_5566_7788)
      try second.restore(state)
      try second.start()
      #expect(try waitForCounter(second.memory, at: Self.page, above: counted))
      second.stop()
    }
  }
}
