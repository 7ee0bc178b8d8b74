import CLinux
import CTestSupport
import Devices
import Glibc
import GuestMemory
import Harness
import Synchronization
import Testing
import VirtioLayout

private let data = TestDriver.buffers
private let hasTap = unsafe getuid() == 0 && access("/dev/net/tun", R_OK | W_OK) == 0

/// What a thread of its own, in a network namespace of its own, came to.
private final class Outcome: Sendable {
  private let text = Mutex<String?>(nil)
  var failure: String? { text.withLock { $0 } }
  func fail(_ what: String) { text.withLock { $0 = $0 ?? what } }
}

/// Runs `body` in a new network namespace with tap "t0", not yet up; the namespace and all in it end with the thread.
private func withTap(_ body: @escaping @Sendable (_ outcome: Outcome) throws -> Void) throws {
  let outcome = Outcome()
  let thread = try HostThread.start(name: "namespace") {
    guard ts_new_network() == 0 else { return outcome.fail("a network namespace can't be made here") }
    let made = unsafe ts_make_tap("t0")
    guard made == 0 else { return outcome.fail("a tap can't be made here: errno \(-made)") }
    do { try body(outcome) } catch { outcome.fail("\(error)") }
  }
  thread.join()
  #expect(outcome.failure == nil)
}

/// An Ethernet frame of the local experimental type, so that the host's stack leaves it alone.
private func frame(_ number: UInt8, _ count: Int = 60) -> [UInt8] {
  [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5] + [UInt8](repeating: number, count: count - 14)
}

private func hostSends(_ host: CInt, _ bytes: [UInt8]) -> Int {
  unsafe bytes.withUnsafeBytes { unsafe lx_send(host, $0.baseAddress, $0.count) }
}

private func hostReceives(_ host: CInt) -> [UInt8] {
  var buffer = [UInt8](repeating: 0, count: 70_000)
  let deadline = Deadline(seconds: 5)
  while !deadline.passed {
    let got = unsafe buffer.withUnsafeMutableBytes { unsafe lx_recv(host, $0.baseAddress, $0.count) }
    if got > 0 { return Array(buffer[..<got]) }
    HostThread.waitReadable(host, timeoutMilliseconds: 50)
  }
  return []
}

/// A card on tap "t0", run by a real event loop.
private final class TapRig {
  let device: NetDevice
  let driver: TestDriver
  let thread: HostThread
  /// A packet socket on the host's side of the tap.
  let host: CInt

  init(_ features: UInt64) throws {
    device = try NetDevice(backend: TapBackend(name: "t0"), mac: [2, 0, 0, 0, 0, 1])
    let up = unsafe ts_set_up("t0")
    guard up == 0 else { throw HostError(operation: "link up", errno: -up) }
    host = unsafe ts_packet_socket("t0")
    guard host >= 0 else { throw HostError(operation: "packet socket", errno: -host) }
    driver = try TestDriver(device)
    let loop = driver.loop
    thread = try HostThread.start(name: "device") { loop.run() }
    start(features)
  }

  func start(_ features: UInt64) {
    driver.negotiate(features)
    driver.queues = (0..<2).map { DriverQueue(index: $0, size: 64) }
    for queue in driver.queues {
      driver.fill(queue.descriptors, 0x4000, 0)
      driver.setUpQueue(queue.index, size: 64)
    }
    driver.setStatus(driver.status | DeviceStatus.driverOK)
  }

  func stop() {
    driver.loop.stop()
    thread.join()
    lx_close(host)
  }

  func addReceiveBuffers(_ count: Int) {
    for index in 0..<count { driver.add(0, [.writable(data + 0x1000 * UInt64(index), 4096)]) }
    driver.write(MMIORegister.queueNotify, 0)
  }

  func transmit(_ frame: [UInt8], header: NetHeader = NetHeader()) {
    driver.poke(header, at: data + 0x10_0000)
    driver.poke(bytes: frame, at: data + 0x10_000c)
    driver.add(1, [.readable(data + 0x10_0000, UInt32(frame.count + 12))])
    driver.write(MMIORegister.queueNotify, 1)
  }

  func collect(_ queue: Int, _ count: Int) -> [Used] {
    var used: [Used] = []
    _ = waitUntil {
      used += driver.takeUsed(queue)
      return used.count >= count
    }
    return used
  }
}

@Suite(
  "Family 14: tap back end", .serialized, .timeLimit(.minutes(Environment.patience)),
  .enabled(if: hasTap, "needs root and /dev/net/tun to make a tap in a network namespace"))
struct TapTests {
  @Test func tap_framesBothWays() throws {
    try withTap { outcome in
      let rig = try TapRig(NetFeature.mergeableBuffers)
      defer { rig.stop() }
      rig.addReceiveBuffers(8)
      for number in 1...8 as ClosedRange<UInt8> {
        guard hostSends(rig.host, frame(number)) == 60 else { return outcome.fail("host can't send") }
      }
      guard rig.collect(0, 8).map(\.written) == [UInt32](repeating: 72, count: 8) else {
        return outcome.fail("frames for the guest are missing")
      }
      for number in 1...8 as ClosedRange<UInt8> {
        let at = data + 0x1000 * UInt64(number - 1)
        if rig.driver.bytes(at + 12, 60) != frame(number) { outcome.fail("frame \(number) differs") }
        if rig.driver.peek(UInt16.self, at: at + 10) != 1 { outcome.fail("num_buffers of frame \(number)") }
      }
      rig.transmit(frame(9))
      if hostReceives(rig.host) != frame(9) { outcome.fail("the frame from the guest differs") }
      if rig.collect(1, 1).count != 1 { outcome.fail("the sent chain did not come back") }
    }
  }

  /// The guest gives no buffers for a while: the host's queue bounds what waits, and it goes on when there are some.
  @Test func tap_starvedThenRefilled_resumes() throws {
    try withTap { outcome in
      let rig = try TapRig(NetFeature.mergeableBuffers | CommonFeature.eventIndex)
      defer { rig.stop() }
      for number in 1...20 as ClosedRange<UInt8> { _ = hostSends(rig.host, frame(number)) }
      // Long enough for the card to have looked at the tap, and found no buffer.
      if !staysTrue(for: 0.02, { rig.driver.takeUsed(0).isEmpty }) { outcome.fail("a frame without a buffer") }
      rig.addReceiveBuffers(20)
      if rig.collect(0, 20).count != 20 { outcome.fail("receiving did not resume") }
      if rig.driver.bytes(data + 0x1000 * 19 + 12, 60) != frame(20) { outcome.fail("the last frame differs") }
    }
  }

  /// The kernel's own checks come behind ours: headers we let through and it refuses cost a frame, nothing else.
  @Test func tap_segmentsTheKernelRefuses_areDropped() throws {
    try withTap { outcome in
      let rig = try TapRig(MemoryBackend.allOffloads)
      defer { rig.stop() }
      var header = NetHeader()
      header.flags = NetHeader.needsChecksum
      header.gsoType = NetHeader.gsoTCPv4
      header.gsoSize = 1
      header.headerLength = 0
      header.checksumStart = 1000
      header.checksumOffset = 2
      rig.transmit(frame(1, 2000), header: header)
      if rig.collect(1, 1).count != 1 { outcome.fail("the chain did not come back") }
      rig.transmit(frame(2))
      let deadline = Deadline(seconds: 5)
      while hostReceives(rig.host) != frame(2) {
        if deadline.passed { return outcome.fail("the card does not go on") }
      }
    }
  }

  @Test func tap_deletedWhileInUse_cardGoesOnWithoutIt() throws {
    try withTap { outcome in
      let rig = try TapRig(NetFeature.mergeableBuffers)
      defer { rig.stop() }
      rig.addReceiveBuffers(8)
      _ = hostSends(rig.host, frame(1))
      if rig.collect(0, 1).count != 1 { outcome.fail("no frame before the deletion") }
      let deleted = unsafe ts_delete_link("t0")
      guard deleted == 0 else { return outcome.fail("the tap can't be deleted: errno \(-deleted)") }
      if !waitUntil({ rig.device.statistics.backendLost.value == 1 }) { outcome.fail("the loss went unnoticed") }
      for _ in 0..<5 {
        rig.transmit(frame(2))
        if rig.collect(1, 1).count != 1 { outcome.fail("a chain did not come back") }
      }
      rig.driver.reset()
      rig.start(NetFeature.mergeableBuffers)
      rig.addReceiveBuffers(8)
      rig.transmit(frame(3))
      if rig.collect(1, 1).count != 1 { outcome.fail("a chain did not come back after a reset") }
      if rig.driver.needsReset { outcome.fail("the device needs a reset") }
    }
  }

  @Test func tap_missingBusyOrTooLong_isNamed() throws {
    try withTap { outcome in
      let first = try TapBackend(name: "t0")
      for (name, expected) in [
        ("t0", NetBackendError.tapBusy(name: "t0")), ("t1", .noSuchTap(name: "t1")),
        ("a-name-too-long-for-linux", .noSuchTap(name: "a-name-too-long-for-linux")),
        ("lo", .notATap(name: "lo")),
      ] {
        do throws(NetBackendError) {
          _ = try TapBackend(name: name)
          outcome.fail("\(name) could be opened")
        } catch {
          if error != expected { outcome.fail("\(name): \(error), not \(expected)") }
        }
      }
      _ = first.descriptor
    }
  }
}
