import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import Testing
import VirtioLayout

private let data = TestDriver.buffers

/// A peer that listens on a unix socket, and a card connected to it, run by a real event loop.
private final class SocketRig {
  let directory: TemporaryDirectory
  let peer: CInt
  let path: String
  /// The card's end of the connection, which its back end closes.
  let socket: CInt
  let device: NetDevice
  let driver: TestDriver
  let thread: HostThread

  init(sendBuffer: Int32? = nil) throws {
    directory = try TemporaryDirectory()
    path = directory.file("socket")
    let listener = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    guard unsafe lx_unix_listen(listener, path, 1) >= 0 else { throw HostError(operation: "listen", errno: errno) }
    let backend = try SocketBackend(path: path)
    socket = backend.descriptor
    peer = lx_accept(listener)
    lx_close(listener)
    if var size = sendBuffer {
      unsafe setsockopt(backend.descriptor, SOL_SOCKET, SO_SNDBUF, &size, socklen_t(MemoryLayout<Int32>.size))
    }
    device = NetDevice(backend: backend, mac: [2, 0, 0, 0, 0, 1])
    driver = try TestDriver(device)
    let loop = driver.loop
    thread = try HostThread.start(name: "device") { loop.run() }
    driver.negotiate(NetFeature.mergeableBuffers)
    driver.queues = (0..<2).map { DriverQueue(index: $0, size: 256) }
    for queue in driver.queues { driver.setUpQueue(queue.index, size: 256) }
    driver.setStatus(driver.status | DeviceStatus.driverOK)
  }

  func stop() {
    driver.loop.stop()
    thread.join()
    lx_close(peer)
  }

  func notify(_ queue: UInt32) { driver.write(MMIORegister.queueNotify, queue) }

  func addReceiveBuffers(_ count: Int) {
    for index in 0..<count { driver.add(0, [.writable(data + 0x800 * UInt64(index), 2048)]) }
    notify(0)
  }

  func peerSends(_ bytes: [UInt8]) -> Int {
    unsafe bytes.withUnsafeBytes { unsafe lx_send(peer, $0.baseAddress, $0.count) }
  }

  func peerReceives(_ count: Int, seconds: Double = 5) -> [UInt8] {
    var all: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    _ = waitUntil(seconds: seconds) {
      var got = 1
      while got > 0, all.count < count {
        let wanted = min(buffer.count, count - all.count)
        got = unsafe buffer.withUnsafeMutableBytes { unsafe lx_recv(peer, $0.baseAddress, wanted) }
        if got > 0 { all += buffer[..<got] }
      }
      return all.count == count
    }
    return all
  }

  /// Bytes the card has not read yet.
  var unread: Int {
    var count: CInt = 0
    return unsafe ioctl(peer, UInt(TIOCOUTQ), &count) < 0 ? -1 : Int(count)
  }

  /// Waits until the card has found that the peer takes no more: its socket is full, and its visit is over.
  func waitUntilFull() -> Bool {
    let isFull = waitUntil {
      var entry = pollfd(fd: socket, events: Int16(POLLOUT), revents: 0)
      return unsafe poll(&entry, 1, 0) == 0
    }
    driver.loop.park()
    driver.loop.unpark()
    return isFull
  }

  /// Used entries of a queue, as many as asked for or as come in `seconds`.
  func collect(_ queue: Int, _ count: Int, seconds: Double = 5) -> [Used] {
    var used: [Used] = []
    _ = waitUntil(seconds: seconds) {
      used += driver.takeUsed(queue)
      return used.count >= count
    }
    return used
  }

  /// Offers a frame of `count` bytes to be sent, all of them `byte`.
  @discardableResult
  func transmit(_ count: Int, byte: UInt8, slot: UInt64) -> UInt16? {
    let address = data + 0x10_0000 + slot * 0x4000
    driver.fill(address, 12, 0)
    driver.fill(address + 12, count, byte)
    return driver.add(1, [.readable(address, UInt32(count + 12))])
  }
}

private func framed(_ frame: [UInt8]) -> [UInt8] {
  let count = UInt32(frame.count)
  return (0..<4).reversed().map { UInt8(truncatingIfNeeded: count >> (8 * $0)) } + frame
}

@Suite("Family 14: socket back end", .timeLimit(.minutes(Environment.patience))) struct SocketTests {
  @Test func socket_framesBothWays() throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    rig.addReceiveBuffers(4)
    let frame = (0..<60).map { UInt8($0) }
    #expect(rig.peerSends(framed(frame)) == 64)
    #expect(rig.collect(0, 1).map(\.written) == [72])
    #expect(rig.driver.bytes(data, 72) == [UInt8](repeating: 0, count: 10) + [1, 0] + frame)
    rig.transmit(100, byte: 7, slot: 0)
    rig.notify(1)
    #expect(rig.peerReceives(104) == framed([UInt8](repeating: 7, count: 100)))
  }

  /// A peer that sends a byte at a time is waited for, and holds nothing else up.
  @Test func socket_slowLoris_frameArrivesWhole() throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    rig.addReceiveBuffers(2)
    let frame = (0..<60).map { UInt8($0) }
    for (index, byte) in framed(frame).enumerated() {
      #expect(rig.peerSends([byte]) == 1)
      #expect(waitUntil { rig.unread == 0 }, "the card takes each byte as it comes")
      if index == 30 {
        rig.transmit(60, byte: 1, slot: 0)
        rig.notify(1)
        #expect(rig.peerReceives(64).count == 64)
        #expect(rig.driver.takeUsed(0).isEmpty)
      }
    }
    #expect(rig.collect(0, 1).map(\.written) == [72])
    #expect(rig.driver.bytes(data + 12, 60) == frame)
  }

  @Test func socket_manySmallFramesAtOnce_allArrive() throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    rig.addReceiveBuffers(250)
    let burst = (0..<250).flatMap { framed([UInt8](repeating: UInt8($0), count: 20)) }
    #expect(rig.peerSends(burst) == burst.count)
    #expect(rig.collect(0, 250).count == 250)
    #expect(rig.driver.peek(UInt8.self, at: data + 0x800 * 249 + 12) == 249)
  }

  @Test(arguments: [[0, 0, 0, 0], [0, 1, 0, 15], [0x7f, 0xff, 0xff, 0xff], [0xff, 0xff, 0xff, 0xff]] as [[UInt8]])
  func socket_garbageLength_peerIsCutOff(length: [UInt8]) throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    rig.addReceiveBuffers(4)
    #expect(rig.peerSends(framed([UInt8](repeating: 1, count: 60)) + length + [UInt8](repeating: 2, count: 100)) > 0)
    #expect(rig.collect(0, 1).count == 1)
    #expect(waitUntil { rig.device.statistics.backendLost.value == 1 })
    #expect(rig.driver.takeUsed(0).isEmpty)
    rig.transmit(60, byte: 1, slot: 0)
    rig.notify(1)
    #expect(rig.collect(1, 1).count == 1)
    #expect(!rig.driver.needsReset)
  }

  @Test func socket_longestFrame_arrives() throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    rig.addReceiveBuffers(64)
    let bytes = framed([UInt8](repeating: 3, count: 65_550))
    var sent = 0
    let deadline = Deadline(seconds: 5)
    while sent < bytes.count, !deadline.passed { sent += max(rig.peerSends(Array(bytes[sent...])), 0) }
    #expect(rig.collect(0, 33).map { Int($0.written) }.reduce(0, +) == 65_562)
  }

  @Test func socket_peerClosesMidFrame_deviceGoesOn() throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    rig.addReceiveBuffers(4)
    let whole = framed([UInt8](repeating: 1, count: 60))
    #expect(rig.peerSends(whole + whole.prefix(20)) == 84)
    shutdown(rig.peer, Int32(SHUT_RDWR))
    #expect(rig.collect(0, 1).count == 1, "what the peer sent before is delivered")
    #expect(waitUntil { rig.device.statistics.backendLost.value == 1 })
    for slot in 0..<3 as Range<UInt64> { rig.transmit(60, byte: 1, slot: slot) }
    rig.notify(1)
    #expect(rig.collect(1, 3).count == 3)
  }

  @Test func socket_peerClosesWhileFull_waitingChainsComeBack() throws {
    let rig = try SocketRig(sendBuffer: 4096)
    defer { rig.stop() }
    for slot in 0..<40 as Range<UInt64> { rig.transmit(8000, byte: 1, slot: slot) }
    rig.notify(1)
    #expect(rig.waitUntilFull())
    let before = rig.driver.takeUsed(1).count
    #expect(before < 40)
    shutdown(rig.peer, Int32(SHUT_RDWR))
    #expect(rig.collect(1, 40 - before).count == 40 - before)
  }

  /// The peer takes frames in bits and pieces: every byte arrives once and in order, the last frame's rest too.
  @Test func socket_shortWrites_everyFrameArrivesOnceAndInOrder() throws {
    let rig = try SocketRig(sendBuffer: 4096)
    defer { rig.stop() }
    var expected: [UInt8] = []
    for slot in 0..<40 as Range<UInt64> {
      rig.transmit(9000 + Int(slot), byte: UInt8(slot), slot: slot)
      expected += framed([UInt8](repeating: UInt8(slot), count: 9000 + Int(slot)))
    }
    rig.notify(1)
    #expect(rig.waitUntilFull())
    let same = rig.peerReceives(expected.count, seconds: 10) == expected
    #expect(same)
    #expect(rig.collect(1, 40).count == 40)
  }

  /// A peer that is started again is found again; what was half received or half sent belongs to the old connection.
  @Test func socket_peerComesBack_cardGoesOn() throws {
    let rig = try SocketRig(sendBuffer: 4096)
    defer { rig.stop() }
    rig.addReceiveBuffers(8)
    #expect(rig.peerSends(Array(framed([UInt8](repeating: 1, count: 60)).prefix(30))) == 30)
    for slot in 0..<40 as Range<UInt64> { rig.transmit(8000, byte: 1, slot: slot) }
    rig.notify(1)
    #expect(rig.waitUntilFull())
    shutdown(rig.peer, Int32(SHUT_RDWR))
    #expect(waitUntil { rig.device.statistics.isBackendLost })
    #expect(rig.collect(1, 40).count == 40)

    unsafe unlink(rig.path)
    let listener = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    defer { lx_close(listener) }
    #expect(unsafe lx_unix_listen(listener, rig.path, 1) >= 0)
    #expect(waitUntil(seconds: 20) { !rig.device.statistics.isBackendLost })
    #expect(rig.device.statistics.backendLost.value == 1 && rig.device.statistics.backendRegained.value == 1)
    let peer = lx_accept(listener)
    defer { lx_close(peer) }
    let bytes = framed([UInt8](repeating: 9, count: 60))
    #expect(unsafe bytes.withUnsafeBytes { unsafe lx_send(peer, $0.baseAddress, $0.count) } == 64)
    #expect(rig.collect(0, 1).map(\.written) == [72])
    #expect(rig.driver.bytes(data + 12, 60) == [UInt8](repeating: 9, count: 60))
    rig.transmit(100, byte: 7, slot: 0)
    rig.notify(1)
    var got = [UInt8](repeating: 0, count: 104)
    HostThread.waitReadable(peer, timeoutMilliseconds: 5000)
    #expect(unsafe got.withUnsafeMutableBytes { unsafe lx_recv(peer, $0.baseAddress, $0.count) } == 104)
    #expect(got == framed([UInt8](repeating: 7, count: 100)))
  }

  /// A peer that takes a connection and hangs up at once is not called all the time.
  @Test func socket_peerThatHangsUp_isCalledLessAndLess() throws {
    let rig = try SocketRig()
    defer { rig.stop() }
    unsafe unlink(rig.path)
    let listener = lx_unix_socket(CInt(SOCK_STREAM.rawValue))
    defer { lx_close(listener) }
    #expect(unsafe lx_unix_listen(listener, rig.path, 8) >= 0)
    shutdown(rig.peer, Int32(SHUT_RDWR))
    var calls = 0
    let deadline = Deadline(seconds: 2)
    while !deadline.passed {
      HostThread.waitReadable(listener, timeoutMilliseconds: 50)
      let peer = lx_accept(listener)
      if peer >= 0 {
        calls += 1
        lx_close(peer)
      }
    }
    // After 0.1, 0.3, 0.7 and 1.5 s.
    #expect((1...4).contains(calls))
  }

  @Test func socket_nobodyListens_isAnErrorThatNamesThePath() throws {
    #expect(throws: NetBackendError.socket(path: "/nonexistent/socket", operation: "connect", errno: ENOENT)) {
      try SocketBackend(path: "/nonexistent/socket")
    }
    let long = "/" + String(repeating: "x", count: 200)
    #expect(throws: NetBackendError.socket(path: long, operation: "connect", errno: ENAMETOOLONG)) {
      try SocketBackend(path: long)
    }
  }
}
