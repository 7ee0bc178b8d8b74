import Devices
import GuestMemory
import MiniVMM
import Testing
import VirtioLayout

@testable import Pair

/// What the VMM writes into guest memory is as little with the secondary as what the guest writes: no reply leaves early that is
/// made of it before a checkpoint has it.
@Suite("What devices write, as a source of replies") struct DeviceSourceTests {
  private let stage = PageStage()

  private func checkpoint(_ epoch: UInt64, _ memory: GuestMemory, _ pages: SourcePages) throws {
    var dirty = PageSet(count: memory.pageCount)
    memory.dirty.harvest(into: &dirty)
    stage.removeAll()
    try stage.add(dirty, of: memory)
    pages.cut(epoch, changed: stage.pages)
    pages.update(stage, epoch: epoch)
  }

  /// A reply of the bytes at `address` once `write` has had them written by a device.
  private func check(_ memory: GuestMemory, _ address: UInt64, _ count: Int, write: () throws -> Void) throws {
    let pages = SourcePages(memory)
    func reply() throws -> [UInt8] {
      var bytes = [UInt8](repeating: 0, count: count)
      try unsafe bytes.withUnsafeMutableBytes { try unsafe memory.read(into: $0, at: address) }
      return bytes
    }
    func standing(_ bytes: [UInt8]) -> Standing {
      unsafe bytes.withUnsafeBytes { unsafe pages.standing($0, at: address) }
    }
    let old = try reply()
    #expect(standing(old) == .unknown)
    for epoch in 1...2 as ClosedRange<UInt64> { try checkpoint(epoch, memory, pages) }
    #expect(standing(old) == .since(1) || standing(old) == .since(2))
    try write()
    let new = try reply()
    #expect(new != old && standing(new) == .changed)
    try checkpoint(3, memory, pages)
    #expect(standing(new) == .since(3) && standing(old) == .changed)
  }

  @Test func diskRead_isNotBeforeTheCheckpoint() throws {
    let disk = try TestDisk(sectors: 64)
    defer { disk.device.shutDown() }
    let driver = try TestDriver(disk.device)
    driver.start()
    try check(driver.memory, TestDisk.data(0), 4096) {
      #expect(disk.run(driver, BlockRequestType.read, sector: 3, count: 4096) == BlockStatus.ok)
    }
  }

  @Test func receivedFrame_isNotBeforeTheCheckpoint() throws {
    let backend = try MemoryBackend()
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(NetFeature.mergeableBuffers, size: 16, queueCount: 2)
    driver.add(0, [.writable(TestDriver.buffers, 2048)])
    driver.kick(0)
    try check(driver.memory, TestDriver.buffers + 12, 1000) {
      backend.deliver((0..<1000).map { UInt8(truncatingIfNeeded: $0 * 7 + 1) })
      driver.backendReady()
      #expect(driver.takeUsed(0).count == 1)
    }
  }
}
