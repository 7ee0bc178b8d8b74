import CLinux
import Devices
import Glibc
import GuestMemory
import Testing
import VirtioLayout

private let data = TestDriver.buffers
private let receiveQueue = 0

@Suite("Family 14: net receive") struct NetReceiveTests {
  let backend: MemoryBackend
  let device: NetDevice
  let driver: TestDriver

  init() throws {
    backend = try MemoryBackend(offloads: MemoryBackend.allOffloads)
    device = NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1])
    driver = try TestDriver(device)
  }

  private func start(_ features: UInt64 = NetFeature.mergeableBuffers, size: UInt16 = 16) {
    driver.start(features, size: size, queueCount: 2)
  }

  @Test func receive_frame_arrivesBehindAHeaderWithOneBuffer() {
    start()
    driver.add(receiveQueue, [.writable(data, 2048)])
    driver.kick(receiveQueue)
    backend.deliver(testFrame(1, 60))
    driver.backendReady()
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [72])
    #expect(driver.bytes(data + 12, 60) == testFrame(1, 60))
    #expect(driver.peek(UInt16.self, at: data + 10) == 1)
    #expect(device.statistics.receivedFrames.value == 1)
  }

  @Test func receive_headerAndFrameInSeveralDescriptors_isScattered() {
    start()
    driver.add(receiveQueue, [.writable(data, 5), .writable(data + 0x1000, 10), .writable(data + 0x2000, 100)])
    backend.deliver(testFrame(1, 60))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [72])
    #expect(driver.bytes(data + 0x1007, 3) + driver.bytes(data + 0x2000, 57) == testFrame(1, 60))
    #expect(driver.peek(UInt16.self, at: data + 0x1005) == 1)
  }

  @Test func receive_merged_numBuffersIsWhatWasUsed() {
    start()
    for index in 0..<8 as Range<UInt64> { driver.add(receiveQueue, [.writable(data + 0x1000 * index, 256)]) }
    backend.deliver(testFrame(1, 1000))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [256, 256, 256, 244])
    #expect(driver.peek(UInt16.self, at: data + 10) == 4)
    let got = driver.bytes(data + 12, 244) + (1..<4).flatMap { driver.bytes(data + 0x1000 * $0, 256) }
    #expect(Array(got.prefix(1000)) == testFrame(1, 1000))
  }

  @Test func receive_mergedFilledExactly_takesNoFurtherBuffer() {
    start()
    for index in 0..<4 as Range<UInt64> { driver.add(receiveQueue, [.writable(data + 0x1000 * index, 36)]) }
    backend.deliver(testFrame(1, 60))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [36, 36])
  }

  @Test func receive_notMergeable_bufferTooSmall_frameIsLostAndBufferComesBack() {
    start(0)
    driver.add(receiveQueue, [.writable(data, 71)])
    driver.add(receiveQueue, [.writable(data + 0x1000, 72)])
    backend.deliver(testFrame(1, 60))
    backend.deliver(testFrame(2, 60))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [0, 72])
    #expect(device.statistics.droppedReceive.value == 1)
    #expect(driver.bytes(data + 0x100c, 60) == testFrame(2, 60))
  }

  @Test(arguments: [1, 11] as [UInt32])
  func receive_bufferTooSmallForTheHeader_frameIsLostAndBufferComesBack(length: UInt32) {
    start()
    driver.add(receiveQueue, [.writable(data, length)])
    driver.add(receiveQueue, [.writable(data + 0x1000, 2048)])
    backend.deliver(testFrame(1, 60))
    backend.deliver(testFrame(2, 60))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [0, 72])
    #expect(driver.bytes(data, 16) == [UInt8](repeating: 0, count: 16))
    #expect(!driver.needsReset)
  }

  @Test func receive_bufferWithNothingWritable_comesBack() {
    start()
    driver.add(receiveQueue, [.readable(data, 2048)])
    backend.deliver(testFrame(1, 60))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [0])
    #expect(!driver.needsReset)
  }

  @Test func receive_starvedThenRefilled_resumesInOrder() {
    start()
    for number in 0..<5 { backend.deliver(testFrame(number, 60)) }
    driver.backendReady()
    #expect(backend.waiting == 5, "frames are left with the host while the guest has no buffer")
    for index in 0..<5 as Range<UInt64> {
      driver.add(receiveQueue, [.writable(data + 0x1000 * index, 2048)])
      driver.kick(receiveQueue)
      #expect(driver.takeUsed(receiveQueue).count == 1)
      #expect(driver.bytes(data + 0x1000 * index + 12, 60) == testFrame(Int(index), 60))
      #expect(backend.receivedSinceEnd == 0, "what was received may have to be told, whatever keeps the next")
    }
  }

  /// Too few buffers for a frame that is being merged: the card asks to be told of the next one, and does not spin.
  @Test(arguments: [CommonFeature.eventIndex, 0])
  func receive_mergedStarvedHalfway_waitsWithoutSpinning(feature: UInt64) {
    start(NetFeature.mergeableBuffers | feature)
    driver.add(receiveQueue, [.writable(data, 100)])
    driver.add(receiveQueue, [.writable(data + 0x1000, 100)])
    backend.deliver(testFrame(1, 240))
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).isEmpty)
    #expect(!isReadable(driver.mmio.notifyDescriptors[receiveQueue]))
    let used = driver.queues[receiveQueue].used
    if feature == 0 {
      #expect(driver.peek(UInt16.self, at: used) & SplitRing.noNotify == 0)
    } else {
      let event: UInt16 = driver.peek(at: used + SplitRing.availEventOffset(16))
      #expect(SplitRing.passes(event: event, from: 2, to: 3), "the third buffer would come unnoticed")
    }
    driver.add(receiveQueue, [.writable(data + 0x2000, 100)])
    driver.kick(receiveQueue)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [100, 100, 52])
    #expect(driver.peek(UInt16.self, at: data + 10) == 3)
    let got = driver.bytes(data + 12, 88) + driver.bytes(data + 0x1000, 100) + driver.bytes(data + 0x2000, 52)
    #expect(got == testFrame(1, 240))
  }

  /// Every buffer of the queue together is too small: the frame is given up, or nothing would be received any more.
  @Test func receive_frameLargerThanTheWholeQueue_isDroppedAndTheNextArrives() {
    start(size: 4)
    for index in 0..<4 as Range<UInt64> { driver.add(receiveQueue, [.writable(data + 0x1000 * index, 100)]) }
    backend.deliver(testFrame(1, 1000))
    backend.deliver(testFrame(2, 60))
    driver.kick(receiveQueue)
    #expect(device.statistics.droppedReceive.value == 1)
    #expect(driver.takeUsed(receiveQueue).map(\.written) == [72])
    #expect(driver.bytes(data + 12, 60) == testFrame(2, 60))
  }

  /// A back end may hold frames that its descriptor tells nothing of: a visit that ends early has to come back.
  @Test func receive_moreThanOneVisit_nothingIsLeftBehind() {
    start(size: 256)
    for index in 0..<256 as Range<UInt64> { driver.add(receiveQueue, [.writable(data + 0x100 * index, 256)]) }
    for number in 0..<200 { backend.deliver(testFrame(number, 60)) }
    driver.backendReady()
    #expect(driver.takeUsed(receiveQueue).count == 200)
    #expect(driver.bytes(data + 0x100 * 199 + 12, 60) == testFrame(199, 60))
    #expect(backend.receivedSinceEnd == 0)
  }

  @Test func receive_offloadsNotNegotiated_areNotAskedFor() {
    start()
    #expect(backend.guestOffloads & MemoryBackend.allOffloads == 0)
    driver.add(receiveQueue, [.writable(data, 2048)])
    driver.add(receiveQueue, [.writable(data + 0x1000, 2048)])
    backend.deliver(testFrame(1, 60), header: [1, 0, 0, 0, 0, 0, 14, 0, 16, 0, 0, 0])
    backend.deliver(testFrame(2, 60), header: [1, 1, 54, 0, 100, 0, 14, 0, 16, 0, 0, 0])
    driver.kick(receiveQueue)
    // The checksum request is taken out; a segment is of no use to a driver that can't take one.
    #expect(driver.takeUsed(receiveQueue).count == 1)
    #expect(driver.peek(UInt8.self, at: data) == 0)
    #expect(device.statistics.droppedReceive.value == 1)
  }

  @Test func receive_largestSegment_arrivesWhole() {
    start(MemoryBackend.allOffloads | NetFeature.mergeableBuffers, size: 64)
    for index in 0..<64 as Range<UInt64> { driver.add(receiveQueue, [.writable(data + 0x1000 * index, 1526)]) }
    let large = testFrame(1, 65_550)
    backend.deliver(large, header: [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0])
    driver.kick(receiveQueue)
    let used = driver.takeUsed(receiveQueue)
    #expect(used.map { Int($0.written) }.reduce(0, +) == 65_562)
    #expect(Int(driver.peek(UInt16.self, at: data + 10)) == used.count)
    #expect(driver.peek(UInt8.self, at: data + 1) == 1)
  }

  @Test func receive_whileStopped_nothingIsTakenFromTheHost() {
    start()
    driver.reset()
    backend.deliver(testFrame(1, 60))
    driver.backendReady()
    #expect(backend.waiting == 1)
  }

  @Test func configuration_isTheMACAddress() {
    #expect((0..<6).map { driver.mmio.read(offset: 0x100 + $0, size: 1) } == [2, 0, 0, 0, 0, 1])
  }
}
