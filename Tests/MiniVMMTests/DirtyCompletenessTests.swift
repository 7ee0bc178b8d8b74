import Foundation
import GuestMemory
import Harness
import Testing

@testable import Devices
@testable import MiniVMM

extension MachineTests {
  /// The promise that checkpoints stand on: whatever changed is in the harvested set. A guest dirties memory and loads
  /// a disk; after each interval the set is held against a comparison of all of memory.
  @Suite struct DirtyCompletenessTests {
    static let kernel = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
      .deletingLastPathComponent().appending(path: "guests/lab/out/lab.elf").path

    /// Pages that differ from a copy of all of memory; of a guest that runs, as good as one can look.
    private func changedPages(of memory: GuestMemory, since copy: [UInt8]) -> [Int] {
      unsafe copy.withUnsafeBytes { copy in
        guard let then = copy.baseAddress, let now = unsafe memory.mapping.baseAddress else { return [] }
        return (0..<memory.pageCount).filter { unsafe memcmp(now + $0 * 4096, then + $0 * 4096, 4096) != 0 }
      }
    }

    @Test(
      .enabled(
        if: unsafe access("/dev/kvm", R_OK | W_OK) == 0 && access(kernel, R_OK) == 0, "needs /dev/kvm and the lab guest"
      ),
      arguments: [DirtyTracking.bitmap, .ring(entries: 4096)], [1, 2])
    func noChangedPageIsMissed(tracking: DirtyTracking, cpus: Int) throws {
      let disk = FileManager.default.temporaryDirectory.appending(path: "minivmm-dirty-\(getpid()).img").path
      let contents = Data([UInt8](repeating: 7, count: 8 << 20))
      #expect(FileManager.default.createFile(atPath: disk, contents: contents))
      defer { try? FileManager.default.removeItem(atPath: disk) }
      let console = MemorySink()
      var description = MachineDescription()
      description.memory = 32 << 20
      description.cpus = cpus
      description.disks = [MachineDescription.Disk(path: disk)]
      description.console = console
      description.dirtyTracking = tracking
      let assembled = try AssembledMachine(description, kvm: KVMSystem())
      defer { assembled.shutDown() }
      let machine = assembled.machine
      let kernel = unsafe open(Self.kernel, O_RDONLY)
      defer { close(kernel) }
      try machine.load(
        BootSource(
          kernel: kernel,
          commandLine:
            "service=dirty,disk dirty=pages:512,rate:20000,seconds:120 disk=rand-read,bs=16384,qd=32,seconds=120",
          devices: assembled.windows))
      try machine.start()
      try #require(waitUntil(seconds: 10) { console.text.contains("lab: ready") })

      let memory = assembled.memory
      var changedInAll = 0
      for round in 0..<15 {
        machine.pause()
        var pages = PageSet(count: memory.pageCount)
        try machine.harvestDirtyPages(into: &pages)
        let before = try memory.bytes(at: 0, count: Int(memory.size))
        machine.resume()
        #expect(waitUntil(seconds: 10) { changedPages(of: memory, since: before).count > 200 }, "an idle guest")
        machine.pause()
        pages.removeAll()
        try machine.harvestDirtyPages(into: &pages)
        let changed = changedPages(of: memory, since: before)
        machine.resume()
        changedInAll += changed.count
        let missed = changed.filter { !pages.contains($0) }
        #expect(missed.isEmpty, "round \(round): pages \(missed) changed and were not tracked")
      }
      #expect(changedInAll > 1000, "the guest must have changed something: \(changedInAll) pages in all")
    }
  }
}
