import CKVM
import GuestMemory
import Harness
import Testing

@testable import MiniVMM

extension MachineTests {
  /// A primary's checkpoints loaded into a secondary that runs on its own in between.
  @Suite struct CheckpointTests {
    private static let (pageA, pageB, results): (UInt64, UInt64, UInt64) = (0x50_0000, 0x50_1000, 0x30_0000)

    /// In user mode: for (;;) { eax = *(u32 *)0x40000000; *(u32 *)0x300004 = eax; ++*(u32 *)0x300000; }
    private static let code: [UInt8] = [
      0x8b, 0x04, 0x25, 0, 0, 0, 0x40, 0x89, 0x04, 0x25, 4, 0, 0x30, 0, 0xff, 0x04, 0x25, 0, 0, 0x30, 0, 0xeb, 0xe9,
    ]

    private func ram(_ memory: GuestMemory) throws -> [UInt8] {
      try memory.regions.flatMap { try memory.bytes(at: $0.start, count: Int($0.size)) }
    }

    @Test(.timeLimit(.minutes(Environment.patience))) func secondary_equalsThePrimaryAfterEveryLoad() throws {
      let primary = try makeUserModeMachine(Self.code, dirtyTracking: .bitmap)
      let secondary = try makeMachine([], dirtyTracking: .bitmap, load: false, rollsBack: true)
      let stage = PageStage()
      var dirty = PageSet(count: primary.memory.pageCount)
      var scratch = dirty
      try primary.memory.store(UInt32(0xaaaa), at: Self.pageA)
      try primary.memory.store(UInt32(0xbbbb), at: Self.pageB)
      try primary.start()
      var stale = 0
      for turn in 0..<6 as Range<UInt64> {
        let before = try primary.memory.load(UInt32.self, at: Self.results)
        #expect(try waitForCounter(primary.memory, at: Self.results, above: before &+ 50))
        if turn > 0 {
          // What a page-table write of the primary's guest is: the secondary's KVM must not go by the old one.
          primary.pause()
          let page = turn % 2 == 0 ? Self.pageA : Self.pageB
          try primary.memory.store(page | UserMode.entryBits, at: UserMode.windowEntry)
          var all = PageSet(count: primary.memory.pageCount)
          try primary.refreshTranslations(harvestingInto: &all)
          all.forEach { primary.memory.dirty.insert(first: $0, last: $0) }
          primary.resume()
        }
        let (gathered, report) = try primary.capture(into: stage, dirty: &dirty)
        #expect(report.total > 0)
        let expected = try ram(primary.memory)
        let window: UInt32 = turn % 2 == 0 ? 0xaaaa : 0xbbbb
        primary.resume()

        try secondary.load([stage], state: gathered.encoded, dirty: &scratch, refreshing: true, clock: .catchesUp)
        #expect(try ram(secondary.memory) == expected, "checkpoint \(turn)")
        if turn == 0 { try secondary.start() } else { secondary.resume() }
        let count = try secondary.memory.load(UInt32.self, at: Self.results)
        #expect(try waitForCounter(secondary.memory, at: Self.results, above: count &+ 50), "it runs from there")
        secondary.pause()
        if try secondary.memory.load(UInt32.self, at: Self.results + 4) != window { stale += 1 }
        // It goes its own way until the next one, by its guest and by its devices.
        try secondary.memory.store(UInt64.random(in: 0...UInt64.max), at: 0x60_0000 + turn * 4096)
        secondary.resume()
        #expect(try waitForCounter(secondary.memory, at: Self.results, above: count &+ 100))
      }
      #expect(stale == 0, "it reads through the page tables of its checkpoint")
      primary.stop()
      secondary.stop()
    }

    enum OwnEnd: CaseIterable {
      case tripleFault, powerOff
      var code: [UInt8] { self == .tripleFault ? Code.tripleFault : Code.powerOff }
      func isCause(of end: MachineEnd?) -> Bool {
        if case .tripleFault = end { self == .tripleFault } else { self == .powerOff && end == .poweroff }
      }
    }

    /// A guest that ends only on the secondary is put back by the next checkpoint, any number of times; one that has ended
    /// when ends count again has.
    @Test(.timeLimit(.minutes(Environment.patience)), arguments: OwnEnd.allCases) func secondarysOwnEnd_isHeld(
      _ own: OwnEnd
    ) throws {
      let primary = try makeMachine(Code.countForever, dirtyTracking: .bitmap)
      let secondary = try makeMachine([], dirtyTracking: .bitmap, load: false, rollsBack: true)
      secondary.holdEnds()
      let stage = PageStage()
      var dirty = PageSet(count: primary.memory.pageCount)
      try primary.start()
      for turn in 0..<4 {
        let state = try primary.capture(into: stage, dirty: &dirty).0.encoded
        primary.resume()
        try secondary.load([stage], state: state, dirty: &dirty, refreshing: true, clock: .catchesUp)
        if turn == 0 { try secondary.start() } else { secondary.resume() }
        let count = try secondary.memory.load(UInt32.self, at: Code.counter)
        #expect(try waitForCounter(secondary.memory, above: count &+ 50), "it runs, turn \(turn)")
        secondary.pause()
        try secondary.memory.write(own.code, at: try secondary.vcpus[0].regs().rip)
        secondary.resume()
        #expect(waitUntil(seconds: 10) { secondary.control.requested == .pause })
        #expect(secondary.end == nil)
        if turn == 3 { break }
        secondary.pause()
        #expect(own.isCause(of: secondary.holdEnds()))
      }
      secondary.acceptEnds()
      #expect(own.isCause(of: secondary.waitForEnd()))
      primary.stop()
      secondary.stop()
    }

    /// A checkpoint that breaks off is not loaded; the secondary is still on the last whole one.
    @Test func unfinishedStage_changesNothing() throws {
      let secondary = try makeMachine([], dirtyTracking: .bitmap, load: false, rollsBack: true)
      let stage = PageStage()
      let copy = try unsafe stage.add(5)
      for index in copy.indices { unsafe copy[index] = 0x5a }
      #expect(try secondary.memory.load(UInt8.self, at: 5 * 4096) == 0)
      #expect(unsafe secondary.memory.checkpointPage(5)?[0] == 0)
    }

    @Test func stage_growsAndKeepsWhatItHolds() throws {
      let stage = PageStage()
      for page in 0..<3000 {
        let copy = try unsafe stage.add(page)
        unsafe copy[0] = UInt8(truncatingIfNeeded: page)
        unsafe copy[4095] = UInt8(truncatingIfNeeded: page >> 8)
      }
      for page in 0..<3000 {
        #expect(stage.pages[page] == page)
        #expect(unsafe stage.contents(page)[0] == UInt8(truncatingIfNeeded: page))
        #expect(unsafe stage.contents(page)[4095] == UInt8(truncatingIfNeeded: page >> 8))
      }
      stage.removeAll()
      #expect(stage.pages.isEmpty)
    }
  }
}
