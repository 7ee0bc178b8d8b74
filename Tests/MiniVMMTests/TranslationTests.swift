import GuestMemory
import Testing

@testable import MiniVMM

extension MachineTests {
  /// Page tables overwritten from outside, as loading a checkpoint does.
  @Suite struct TranslationTests {
    private static let (pageA, pageB, results): (UInt64, UInt64, UInt64) = (0x50_0000, 0x50_1000, 0x30_0000)

    /// In user mode: for (;;) { eax = *(u32 *)0x40000000; *(u32 *)0x300004 = eax; ++*(u32 *)0x300000; }
    private static let code: [UInt8] = [
      0x8b, 0x04, 0x25, 0, 0, 0, 0x40, 0x89, 0x04, 0x25, 4, 0, 0x30, 0, 0xff, 0x04, 0x25, 0, 0, 0x30, 0, 0xeb, 0xe9,
    ]

    @Test(arguments: [DirtyTracking.none, .bitmap, .ring(entries: 1024)])
    func refresh_makesTheGuestSeeTheNewPage(tracking: DirtyTracking) throws {
      let machine: Machine
      do { machine = try makeUserModeMachine(Self.code, dirtyTracking: tracking) } catch MachineError.kvm(
        .missingCapability)
      { return }
      let memory = machine.memory
      try memory.store(UInt32(0xaaaa), at: Self.pageA)
      try memory.store(UInt32(0xbbbb), at: Self.pageB)

      try machine.start()
      #expect(try waitForCounter(memory, at: Self.results, above: 100))
      machine.pause()
      #expect(try memory.load(UInt32.self, at: Self.results + 4) == 0xaaaa)
      try memory.store(Self.pageB | UserMode.entryBits, at: UserMode.windowEntry)
      var pages = PageSet(count: memory.pageCount)
      try machine.refreshTranslations(harvestingInto: &pages)
      if tracking != .none { #expect(pages.contains(0x300), "what was dirty before is not forgotten") }
      let count = try memory.load(UInt32.self, at: Self.results)
      machine.resume()
      #expect(try waitForCounter(memory, at: Self.results, above: count &+ 100))
      machine.pause()
      #expect(try memory.load(UInt32.self, at: Self.results + 4) == 0xbbbb)
      if tracking != .none {
        pages.removeAll()
        try machine.harvestDirtyPages(into: &pages)
        #expect(pages.contains(0x300), "still tracked afterwards")
      }
      machine.stop()
    }
  }
}
