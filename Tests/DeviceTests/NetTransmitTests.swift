import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import Testing
import VirtioLayout

private let data = TestDriver.buffers
private let receiveQueue = 0
private let transmitQueue = 1

@Suite("Family 14: net transmit") struct NetTransmitTests {
  let backend: MemoryBackend
  let device: NetDevice
  let driver: TestDriver

  init() throws {
    backend = try MemoryBackend(offloads: MemoryBackend.allOffloads)
    device = NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1])
    driver = try TestDriver(device)
    driver.start(MemoryBackend.allOffloads, size: 16, queueCount: 2)
  }

  /// Offers one frame of `count` bytes with `header`, in one buffer.
  private func offer(_ header: NetHeader = NetHeader(), number: Int = 1, count: Int = 60, slot: UInt64 = 0) {
    let address = data + 0x2_0000 * slot
    driver.poke(header, at: address)
    driver.poke(bytes: testFrame(number, count), at: address + 12)
    driver.add(transmitQueue, [.readable(address, UInt32(12 + count))])
  }

  private func expectDropped(sourceLocation: SourceLocation = #_sourceLocation) {
    driver.kick(transmitQueue)
    #expect(driver.takeUsed(transmitQueue).map(\.written) == [0], sourceLocation: sourceLocation)
    #expect(backend.sent.isEmpty, sourceLocation: sourceLocation)
    #expect(device.statistics.droppedTransmit.value == 1, sourceLocation: sourceLocation)
    #expect(driver.mmio.mistakes[.request] == 1, sourceLocation: sourceLocation)
    #expect(!driver.needsReset, sourceLocation: sourceLocation)
    offer(number: 9)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.frame) == [testFrame(9, 60)], sourceLocation: sourceLocation)
  }

  @Test func transmit_frame_isSentAndComesBack() {
    offer()
    driver.kick(transmitQueue)
    #expect(backend.sent == [.init(header: [UInt8](repeating: 0, count: 12), frame: testFrame(1, 60))])
    #expect(driver.takeUsed(transmitQueue).map(\.written) == [0])
  }

  @Test func transmit_headerAndFrameInPieces_isGathered() {
    driver.poke(NetHeader(), at: data)
    driver.poke(bytes: testFrame(3, 60), at: data + 0x1000)
    driver.add(
      transmitQueue,
      [
        .readable(data, 7), .readable(data + 7, 5), .readable(data + 0x1000, 1), .readable(data + 0x1001, 59),
      ])
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.frame) == [testFrame(3, 60)])
  }

  @Test(arguments: [1, 11, 12, 25] as [UInt32])
  func transmit_missingHeaderOrFrame_isDropped(length: UInt32) {
    driver.add(transmitQueue, [.readable(data, length)])
    expectDropped()
  }

  @Test func transmit_shortestFrame_isSent() {
    offer(count: 14)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.frame.count) == [14])
  }

  @Test func transmit_largestFrame_isSent() {
    offer(count: 65_550)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.frame.count) == [65_550])
  }

  @Test func transmit_beyondTheLargestFrame_isDropped() {
    driver.add(transmitQueue, [.readable(data, 65_551 + 12)])
    expectDropped()
  }

  @Test func transmit_hugeChain_isDropped() {
    driver.add(transmitQueue, (0..<15).map { _ in .readable(0, 4 << 20) })
    expectDropped()
  }

  @Test func transmit_writableChain_isDropped() {
    driver.add(transmitQueue, [.writable(data, 100)])
    expectDropped()
    #expect(driver.bytes(data + 12, 8) != [UInt8](repeating: 0xa5, count: 8))
  }

  @Test(
    arguments: [
      (14, 45, 60), (14, 0xffff, 60), (0xffff, 0xffff, 60), (0, 16, 60), (13, 16, 60), (58, 1, 60), (60, 0, 60),
    ] as [(UInt16, UInt16, Int)])
  func transmit_checksumOutsideTheFrame_isDropped(start: UInt16, offset: UInt16, count: Int) {
    var header = NetHeader()
    header.flags = NetHeader.needsChecksum
    header.checksumStart = start
    header.checksumOffset = offset
    offer(header, count: count)
    expectDropped()
  }

  @Test func transmit_checksumInTheLastTwoBytes_isSent() {
    var header = NetHeader()
    header.flags = NetHeader.needsChecksum
    header.checksumStart = 34
    header.checksumOffset = 24
    offer(header, count: 60)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.header) == [[1, 0, 0, 0, 0, 0, 34, 0, 24, 0, 0, 0]])
  }

  @Test(
    arguments: [
      // type, size, header length, flags
      (1, 0, 54, 1), (1, 1400, 54, 0), (1, 1400, 2000, 1), (2, 1400, 54, 1), (3, 1400, 54, 1), (5, 1400, 54, 1),
      (0x7f, 1400, 54, 1), (0x80, 1400, 54, 1), (0xff, 1400, 54, 1), (4, 0, 54, 1),
    ] as [(UInt8, UInt16, UInt16, UInt8)])
  func transmit_badSegmentation_isDropped(type: UInt8, size: UInt16, headerLength: UInt16, flags: UInt8) {
    var header = NetHeader()
    header.flags = flags
    header.gsoType = type
    header.gsoSize = size
    header.headerLength = headerLength
    header.checksumStart = 34
    header.checksumOffset = 16
    offer(header, count: 1500)
    expectDropped()
  }

  @Test(arguments: [1, 0x81, 4, 0x84] as [UInt8])
  func transmit_goodSegmentation_isSent(type: UInt8) {
    var header = NetHeader()
    header.flags = NetHeader.needsChecksum
    header.gsoType = type
    header.gsoSize = 1400
    header.headerLength = 54
    header.checksumStart = 34
    header.checksumOffset = 16
    offer(header, count: 30_000)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.header) == [[1, type, 54, 0, 0x78, 5, 34, 0, 16, 0, 0, 0]])
  }

  @Test func transmit_offloadsNotNegotiated_areDropped() {
    driver.start(0, queueCount: 2)
    var header = NetHeader()
    header.flags = NetHeader.needsChecksum
    header.checksumStart = 34
    header.checksumOffset = 16
    offer(header)
    expectDropped()
  }

  /// Fields without a meaning in a sent header do not reach the host.
  @Test func transmit_unusedHeaderFields_areZeroed() {
    var header = NetHeader()
    header.flags = 0xfe
    header.headerLength = 0xffff
    header.gsoSize = 0xffff
    header.checksumStart = 0xffff
    header.checksumOffset = 0xffff
    header.bufferCount = 0xffff
    offer(header)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.header) == [[UInt8](repeating: 0, count: 12)])
  }

  /// The host is full: chains go back and are taken again later, each exactly once and in order.
  @Test(arguments: [0, CommonFeature.eventIndex])
  func transmit_hostFull_laterEachFrameIsSentOnceAndInOrder(feature: UInt64) {
    driver.start(feature, size: 16, queueCount: 2)
    backend.isFull = true
    for number in 0..<8 { offer(number: number, slot: UInt64(number)) }
    driver.kick(transmitQueue)
    #expect(driver.takeUsed(transmitQueue).isEmpty)
    driver.kick(transmitQueue)
    driver.backendReady(EPOLLOUT.rawValue)
    #expect(backend.sent.isEmpty)
    backend.isFull = false
    // What comes meanwhile waits its turn.
    offer(number: 8, slot: 8)
    driver.kick(transmitQueue)
    driver.backendReady(EPOLLOUT.rawValue)
    #expect(backend.sent.map(\.frame) == (0..<9).map { testFrame($0, 60) })
    #expect(driver.takeUsed(transmitQueue).count == 9)
    offer(number: 9)
    driver.kick(transmitQueue)
    #expect(backend.sent.count == 10)
  }

  @Test func transmit_hostFullInTheMiddle_isPickedUpThere() {
    for number in 0..<8 { offer(number: number, slot: UInt64(number)) }
    let backend = backend
    backend.beforeSend { if backend.sent.count == 3 { backend.isFull = true } }
    driver.kick(transmitQueue)
    #expect(backend.sent.count == 3)
    #expect(driver.takeUsed(transmitQueue).count == 3)
    backend.beforeSend {}
    backend.isFull = false
    driver.backendReady(EPOLLOUT.rawValue)
    #expect(backend.sent.map(\.frame) == (0..<8).map { testFrame($0, 60) })
  }

  /// A back end that no descriptor makes writable, and a guest with more to send than a visit's share and nothing to receive into:
  /// what the back end tells of room is not taken for anything else, and is told once.
  @Test func transmit_roomIsToldOnce_everythingLeaves() throws {
    let backend = try MemoryBackend(tellsOfRoom: true)
    let driver = try TestDriver(NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1]))
    driver.start(0, size: 256, queueCount: 2)
    backend.isFull = true
    for number in 0..<200 as Range<UInt64> {
      let address = data + 0x100 * number
      driver.poke(NetHeader(), at: address)
      driver.poke(bytes: testFrame(Int(number), 60), at: address + 12)
      driver.add(transmitQueue, [.readable(address, 72)])
    }
    driver.kick(transmitQueue)
    backend.isFull = false
    lx_eventfd_signal(try #require(backend.room))
    backend.deliver(testFrame(1, 60))
    driver.backendReady()
    #expect(backend.sent.isEmpty)
    driver.mmio.ready(tag: VirtioMMIO.deviceTag + 1, events: EPOLLIN.rawValue)
    driver.run()
    #expect(backend.sent.map(\.frame) == (0..<200).map { testFrame($0, 60) })
  }

  @Test func transmit_hostFullForEver_resetFreesTheDevice() {
    backend.isFull = true
    offer()
    driver.kick(transmitQueue)
    driver.start(queueCount: 2)
    backend.isFull = false
    offer(number: 4)
    driver.kick(transmitQueue)
    #expect(backend.sent.map(\.frame) == [testFrame(4, 60)])
  }

  @Test func backend_lost_transmitGoesNowhereAndComesBack() {
    backend.lose()
    driver.backendReady(EPOLLERR.rawValue)
    for slot in 0..<5 { offer(slot: UInt64(slot)) }
    driver.kick(transmitQueue)
    #expect(driver.takeUsed(transmitQueue).count == 5)
    #expect(device.statistics.backendLost.value == 1)
    #expect(device.statistics.droppedTransmit.value == 5)
  }

  /// Chains that wait for room come back when there will never be any.
  @Test(arguments: [EPOLLERR.rawValue, EPOLLHUP.rawValue, EPOLLIN.rawValue])
  func backend_lostWhileFull_waitingChainsComeBack(events: UInt32) {
    backend.isFull = true
    for slot in 0..<10 { offer(slot: UInt64(slot)) }
    driver.add(receiveQueue, [.writable(data, 2048)])
    driver.kick(receiveQueue)
    driver.kick(transmitQueue)
    backend.lose()
    driver.backendReady(events)
    #expect(driver.takeUsed(transmitQueue).count == 10)
    driver.start(queueCount: 2)
    offer()
    driver.kick(transmitQueue)
    #expect(driver.takeUsed(transmitQueue).count == 1, "the card is usable, if to no avail, after a reset")
  }

  /// The host took a part of a frame: the rest goes out without another frame to push it.
  @Test func transmit_partlyTaken_theRestIsFlushedWithoutAnotherFrame() throws {
    backend.keepRest(flushes: 5)
    let loop = driver.loop
    let thread = try HostThread.start(name: "device") { loop.run() }
    offer()
    driver.write(MMIORegister.queueNotify, 1)
    #expect(waitUntil { !backend.sent.isEmpty && !backend.hasRest })
    #expect(backend.sent.count == 1)
    loop.stop()
    thread.join()
  }
}
