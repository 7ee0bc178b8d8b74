import Foundation
import GuestMemory
import Harness
import Testing

@testable import Devices
@testable import MiniVMM

extension MachineTests {
  /// What a secondary's guest sees after a load is the checkpoint, whatever it did before.
  @Suite struct LoadTests {
    /// A page of the guest's view that was copied and then not written: KVM does that for a guest that is stopped before it
    /// gets to write.
    @Test func copyThatNobodyNoted_doesNotOutliveThePage() throws {
      let secondary = try makeMachine([], dirtyTracking: .bitmap, load: false, rollsBack: true)
      let primary = try makeMachine(Code.countForever)
      try primary.start()
      primary.pause()
      let state = try primary.save()
      primary.stop()
      let stage = PageStage()
      var dirty = PageSet(count: secondary.memory.pageCount)
      for value in 1...3 as ClosedRange<UInt8> {
        stage.removeAll()
        let page = try unsafe stage.add(5)
        for index in page.indices { unsafe page[index] = value }
        try secondary.load([stage], state: state, dirty: &dirty, refreshing: false, clock: .catchesUp)
        #expect(try secondary.memory.bytes(at: 5 * 4096, count: 4096) == [UInt8](repeating: value, count: 4096))
        let view = unsafe try #require(secondary.memory.hostPointer(at: 5 * 4096, count: 4096))
        unsafe view.storeBytes(of: value, as: UInt8.self)
      }
    }

    /// Both sides run the lab guest, its CPUs at one lock, and write hundreds of pages between loads.
    @Test(
      .enabled(
        if: unsafe access("/dev/kvm", R_OK | W_OK) == 0 && access(DirtyCompletenessTests.kernel, R_OK) == 0,
        "needs /dev/kvm and the lab guest"), .timeLimit(.minutes(2 * Environment.patience)), arguments: [1, 2])
    func busySecondary_isTheCheckpointAfterEachLoad(cpus: Int) throws {
      var description = MachineDescription()
      description.memory = 32 << 20
      description.cpus = cpus
      description.dirtyTracking = .bitmap
      let console = MemorySink()
      description.console = console
      let first = try AssembledMachine(description, kvm: KVMSystem())
      description.rollsBack = true
      description.console = MemorySink()
      let second = try AssembledMachine(description, kvm: KVMSystem())
      let (primary, secondary) = (first.machine, second.machine)
      defer {
        first.shutDown()
        second.shutDown()
      }
      let kernel = unsafe open(DirtyCompletenessTests.kernel, O_RDONLY)
      defer { close(kernel) }
      try primary.load(
        BootSource(
          kernel: kernel,
          commandLine: "service=dirty,burn dirty=pages:1024,rate:20000,seconds:120 burn=seconds:120",
          devices: first.windows))
      try primary.start()
      try #require(waitUntil(seconds: 10) { console.text.contains("lab: ready") })

      let stage = PageStage()
      var (dirty, rolledBack) = (PageSet(count: first.memory.pageCount), PageSet(count: first.memory.pageCount))
      for turn in 0..<40 {
        let state = try primary.capture(into: stage, dirty: &dirty).0.encoded
        try secondary.load([stage], state: state, dirty: &rolledBack, refreshing: true, clock: .continues)
        // But for kvmclock's pages, which restoring writes.
        let written = try changedByRestoring(secondary)
        let different = (0..<first.memory.pageCount).filter { page in
          unsafe memcmp(
            first.memory.mapping.baseAddress! + page * 4096, second.memory.mapping.baseAddress! + page * 4096, 4096)
            != 0
        }
        #expect(different.allSatisfy(written.contains), "turn \(turn): pages \(different), restoring wrote \(written)")
        primary.resume()
        if turn == 0 { try secondary.start() } else { secondary.resume() }
        usleep(20_000)  // how much is written meanwhile does not matter
      }
    }

    private func changedByRestoring(_ machine: Machine) throws -> [Int] {
      var pages = PageSet(count: machine.memory.pageCount)
      try machine.harvestDirtyPages(into: &pages)
      var found: [Int] = []
      pages.forEach {
        found.append($0)
        machine.memory.dirty.insert(first: $0, last: $0)
      }
      return found
    }
  }
}
