import CTestSupport
import Devices
import Glibc
import GuestMemory
import Synchronization
import Testing
import VirtioLayout

func atomicFence() { ts_full_fence() }

/// The rule for a driver's mistakes: counted, announced as DEVICE_NEEDS_RESET with a configuration interrupt, nothing
/// more done until the reset, and everything works after it.
func expectNeedsResetAndRecovery(_ driver: TestDriver, sourceLocation: SourceLocation = #_sourceLocation) {
  #expect(driver.needsReset, sourceLocation: sourceLocation)
  #expect(driver.mmio.mistakes[.chain] == 1, sourceLocation: sourceLocation)
  #expect(
    driver.read(MMIORegister.interruptStatus) & MMIORegister.configurationInterrupt != 0,
    sourceLocation: sourceLocation)
  let before = driver.usedIndexes
  driver.kick()
  #expect(driver.usedIndexes == before, "the device goes on in spite of its error", sourceLocation: sourceLocation)
  expectUsable(driver, sourceLocation: sourceLocation)
}

/// Resets the device and has it fill one buffer of 16 bytes (the recording and the entropy device do).
func expectUsable(_ driver: TestDriver, sourceLocation: SourceLocation = #_sourceLocation) {
  let count = driver.queues.count
  driver.start(queueCount: max(count, 1))
  #expect(!driver.needsReset, sourceLocation: sourceLocation)
  #expect(driver.read(MMIORegister.interruptStatus) == 0, sourceLocation: sourceLocation)
  let head = driver.add(0, [.writable(TestDriver.buffers, 16)])
  driver.kick()
  #expect(driver.takeUsed() == [Used(head: head ?? 0, written: 16)], sourceLocation: sourceLocation)
}

/// All of guest RAM, for comparing.
func contents(_ memory: GuestMemory) -> [UInt8] { unsafe [UInt8](memory.mapping) }

/// Pages that differ between two copies of RAM.
func changedPages(_ before: [UInt8], _ after: [UInt8]) -> Set<Int> {
  let size = Int(GuestMemory.pageSize)
  return unsafe before.withUnsafeBytes { old in
    unsafe after.withUnsafeBytes { new in
      Set(
        (0..<before.count / size).filter { page in
          unsafe memcmp(old.baseAddress! + page * size, new.baseAddress! + page * size, size) != 0
        })
    }
  }
}

/// Pages marked dirty since the last call.
func harvest(_ memory: GuestMemory) -> Set<Int> {
  var pages = PageSet(count: memory.pageCount)
  memory.dirty.harvest(into: &pages)
  var result: Set<Int> = []
  pages.forEach { result.insert($0) }
  return result
}

/// Runs `body`, in which only the device may store, and checks that every page it changed is marked dirty. Returns the
/// pages that changed.
@discardableResult
func expectWritesMarked(
  _ memory: GuestMemory, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) rethrows -> Set<Int> {
  _ = harvest(memory)
  let before = contents(memory)
  try body()
  let changed = changedPages(before, contents(memory))
  let missed = changed.subtracting(harvest(memory))
  #expect(missed.isEmpty, "pages written and not marked: \(missed.sorted())", sourceLocation: sourceLocation)
  return changed
}

/// A yes or no that threads share.
final class Flag: Sendable {
  private let storage = Atomic<Bool>(false)
  var isSet: Bool { storage.load(ordering: .acquiring) }
  func set() { storage.store(true, ordering: .releasing) }
}

/// A directory for one test, removed with it.
final class TemporaryDirectory: Sendable {
  let path: String

  init() throws {
    var template = Array("/tmp/minivmm-test-XXXXXX".utf8CString)
    guard unsafe mkdtemp(&template) != nil else { throw HostError(operation: "mkdtemp", errno: errno) }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit {
    for name in ["disk", "socket", "output"] { unsafe unlink(path + "/" + name) }
    unsafe rmdir(path)
  }

  func file(_ name: String) -> String { path + "/" + name }
}
