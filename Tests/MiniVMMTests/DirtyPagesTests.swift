import Glibc
import GuestMemory
import Harness
import Testing

@testable import MiniVMM

extension MachineTests {
  @Suite struct DirtyPagesTests {
    /// mov edi, 0x400000; mov ecx, pages; again: mov [edi], ecx; add edi, 0x1000; loop again
    private func writePages(_ count: UInt8) -> [UInt8] {
      [0xbf, 0, 0, 0x40, 0, 0xb9, count, 0, 0, 0, 0x89, 0x0f, 0x81, 0xc7, 0, 0x10, 0, 0, 0xe2, 0xf6]
    }

    @Test(arguments: [DirtyTracking.bitmap, .ring(entries: 1024)])
    func harvest_missesNothing_andNamesNoUnrelatedPage(tracking: DirtyTracking) throws {
      let machine: Machine
      do {
        machine = try makeUserModeMachine(writePages(20) + UserMode.countForever, dirtyTracking: tracking)
      } catch MachineError.kvm(.missingCapability) { return }
      var pages = PageSet(count: machine.memory.pageCount)
      try machine.harvestDirtyPages(into: &pages)
      #expect(pages.contains(0x200), "the loader's own writes count")
      pages.removeAll()
      try machine.start()
      #expect(try waitForCounter(machine.memory, above: 0))
      machine.pause()
      try machine.memory.store(UInt32(1), at: 0x80_0000)
      try machine.harvestDirtyPages(into: &pages)
      var expected = PageSet(count: machine.memory.pageCount)
      for page in 0x400..<0x414 { expected.insert(page) }
      expected.insert(0x300)  // the counter
      expected.insert(0x800)  // the VMM's own write
      // KVM may add what it maps writable or walks through: the code's page, the page tables. No others.
      for page in [0x100, 0x101, 0x102, 0x103, 0x104, 0x200] where pages.contains(page) { expected.insert(page) }
      #expect(pages == expected)
      var again = PageSet(count: machine.memory.pageCount)
      try machine.harvestDirtyPages(into: &again)
      #expect(again.population == 0)
      machine.stop()
    }

    @Test(arguments: [DirtyTracking.bitmap, .ring(entries: 1024)])
    func pageWrittenAfterAHarvest_isFoundAgain(tracking: DirtyTracking) throws {
      let machine: Machine
      do { machine = try makeUserModeMachine(UserMode.countForever, dirtyTracking: tracking) } catch MachineError.kvm(
        .missingCapability)
      { return }
      try machine.start()
      for _ in 0..<20 {
        let before = try machine.memory.load(UInt32.self, at: Code.counter)
        #expect(try waitForCounter(machine.memory, above: before))
        machine.pause()
        var pages = PageSet(count: machine.memory.pageCount)
        try machine.harvestDirtyPages(into: &pages)
        #expect(pages.contains(0x300))
        machine.resume()
      }
      machine.stop()
    }

    @Test func fullRing_losesNothing() throws {
      // 3000 pages through a ring of 1024: mov ecx, 3000
      var code = writePages(0)
      code.replaceSubrange(6..<8, with: [0xb8, 0x0b])
      let machine: Machine
      do {
        machine = try makeUserModeMachine(code + UserMode.countForever, dirtyTracking: .ring(entries: 1024))
      } catch MachineError.kvm(.missingCapability) { return }
      var pages = PageSet(count: machine.memory.pageCount)
      try machine.harvestDirtyPages(into: &pages)
      pages.removeAll()
      try machine.start()
      #expect(try waitForCounter(machine.memory, above: 0))
      machine.pause()
      try machine.harvestDirtyPages(into: &pages)
      machine.stop()
      for page in 0x400..<0x400 + 3000 { #expect(pages.contains(page)) }
    }

    /// Harvests; false when the ring was overrun.
    private func harvest(_ machine: Machine, into pages: inout PageSet) throws -> Bool {
      do throws(MachineError) { try machine.harvestDirtyPages(into: &pages) } catch {
        guard error == .kvm(.dirtyRingOverrun) else { throw error }
        return false
      }
      return true
    }

    private func counter(_ machine: Machine) throws -> UInt32 {
      try machine.memory.load(UInt32.self, at: Code.counter)
    }

    /// A kernel-mode guest, which some hosts interpret in batches that don't stop at a full ring.
    @Test func overrunRing_endsTheMachineByName_neverLosesPagesSilently() throws {
      guard try KVMSystem().capability(.dirtyRing) > 0 else { return }
      let machine = try makeMachine(Code.countForever, dirtyTracking: .ring(entries: 1024))
      try machine.start()
      var counted: UInt32 = 0
      for _ in 0..<50 {
        // As many stores as the ring has entries: some hosts log each of them.
        #expect(try waitUntil { try machine.end != nil || counter(machine) &- counted > 1024 })
        machine.pause()
        var pages = PageSet(count: machine.memory.pageCount)
        let isWhole = try harvest(machine, into: &pages)
        if !isWhole || machine.end != nil { break }
        let now = try counter(machine)
        if now != counted { #expect(pages.contains(0x300)) }
        counted = now
        machine.resume()
      }
      let end = machine.end
      machine.stop()
      guard let end else { return }
      if case .internalError(let error) = end {
        #expect(error.kind == .dirtyRingOverrun)
      } else {
        Issue.record("\(end)")
      }
    }
  }
}
