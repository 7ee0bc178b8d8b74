import CLinux
import Devices
import Glibc
import GuestMemory
import Testing
import VirtioLayout

/// Where and how long to look: MINIVMM_FUZZ_SEED replays, MINIVMM_FUZZ_SECONDS lengthens (all tests of the suite together).
enum FuzzSettings {
  static let seed = unsafe getenv("MINIVMM_FUZZ_SEED").flatMap { unsafe UInt64(String(cString: $0)) } ?? 0x5eed
  static let seconds = unsafe getenv("MINIVMM_FUZZ_SECONDS").flatMap { unsafe Double(String(cString: $0)) } ?? 20
  static let shares = 5.0
  static var share: Double { seconds / shares }
}

/// What is fuzzed, and how its queues look when they are well.
enum FuzzKind: String, CaseIterable, Sendable, CustomTestStringConvertible {
  case entropy, block, net
  var testDescription: String { rawValue }
}

/// One device with its driver and what of the host it needs.
final class FuzzSubject {
  let kind: FuzzKind
  let driver: TestDriver
  let backend: MemoryBackend?
  let disk: TestDisk?
  var queueCount: Int { kind == .net ? 2 : 1 }

  init(_ kind: FuzzKind) throws {
    self.kind = kind
    let memory = try GuestMemory(size: 1 << 20)
    switch kind {
    case .entropy:
      backend = nil
      disk = nil
      driver = try TestDriver(Entropy(), memory: memory)
    case .block:
      backend = nil
      let disk = try TestDisk(sectors: 128)
      self.disk = disk
      driver = try TestDriver(disk.device, memory: memory)
    case .net:
      disk = nil
      let backend = try MemoryBackend(offloads: MemoryBackend.allOffloads)
      self.backend = backend
      driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]), memory: memory)
    }
  }

  func end() { disk?.device.shutDown() }

  /// The device thread's part, the host's included; requests on workers are waited for.
  func work(_ random: inout SplitMix64) {
    if let backend, random.next() % 2 == 0 {
      backend.isFull = random.next() % 8 == 0
      if backend.waiting < 4 {
        let count = [14, 60, 1514, 9000, 65_550][Int(random.next() % 5)]
        backend.deliver([UInt8](repeating: 0x5a, count: count), header: (0..<12).map { _ in UInt8(random.next() % 4) })
      }
    }
    driver.run()
    let events = random.next() % 4 == 0 ? EPOLLIN.rawValue | EPOLLOUT.rawValue : EPOLLIN.rawValue
    if kind != .entropy {
      driver.mmio.ready(tag: VirtioMMIO.deviceTag, events: events)
      driver.run()
    }
    driver.mmio.quiesce()
  }

  /// After whatever happened: a reset, and one ordinary request.
  func isUsableAfterReset() -> Bool {
    driver.start(size: 8, queueCount: queueCount)
    switch kind {
    case .entropy:
      driver.add(0, [.writable(0x8_0000, 16)])
      driver.kick()
      return driver.takeUsed().map(\.written) == [16]
    case .block:
      driver.poke(BlockRequestHeader(type: BlockRequestType.read, sector: 1), at: 0x8_0000)
      driver.add(0, [.readable(0x8_0000, 16), .writable(0x8_1000, 513)])
      driver.write(MMIORegister.queueNotify, 0)
      return driver.collect(1).map(\.written) == [513] && driver.peek(UInt8.self, at: 0x8_1200) == BlockStatus.ok
    case .net:
      backend?.isFull = false
      backend?.clear()
      driver.fill(0x8_0000, 12, 0)
      driver.add(1, [.readable(0x8_0000, 72)])
      driver.kick(1)
      return driver.takeUsed(1).count == 1
    }
  }
}
