import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import StateCodec
import Synchronization
import Testing

/// A sink that takes as many bytes as it is told to.
private final class SlowSink: ConsoleSink {
  private struct State {
    var room = 0
    var bytes: [UInt8] = []
  }
  private let state = Mutex(State())
  /// An eventfd that is always writable stands in for a pipe.
  let waitDescriptor: CInt? = lx_eventfd(0)

  deinit { if let waitDescriptor { lx_close(waitDescriptor) } }

  var bytes: [UInt8] { state.withLock { $0.bytes } }
  func allow(_ count: Int) { state.withLock { $0.room += count } }

  func write(_ bytes: ArraySlice<UInt8>) -> Int {
    state.withLock { state in
      let taken = min(state.room, bytes.count)
      state.bytes += bytes.prefix(taken)
      state.room -= taken
      return taken
    }
  }
}

private enum Register {
  static let data: UInt64 = 0
  static let interruptEnable: UInt64 = 1
  static let identification: UInt64 = 2
  static let lineControl: UInt64 = 3
  static let modemControl: UInt64 = 4
  static let lineStatus: UInt64 = 5
  static let modemStatus: UInt64 = 6
  static let scratch: UInt64 = 7
}

@Suite("Family 16: serial port") struct SerialTests {
  let line: InterruptLine
  let serial: Serial8250
  let loop: EventLoop

  init() throws {
    line = try InterruptLine()
    serial = try Serial8250(line: line)
    loop = try EventLoop()
  }

  private func read(_ offset: UInt64) -> UInt8 { UInt8(truncatingIfNeeded: serial.read(offset: offset, size: 1)) }
  private func write(_ offset: UInt64, _ value: UInt8) { serial.write(offset: offset, size: 1, value: UInt64(value)) }
  /// Interrupts since the last call.
  private var interrupts: UInt64 { lx_eventfd_take(line.descriptor) }
  private func drain() { serial.ready(tag: 0, events: EPOLLIN.rawValue) }

  @Test func output_reachesTheSinkInOrder() throws {
    let sink = MemorySink()
    try serial.attach(to: loop, sink: sink)
    for byte in "hello".utf8 { write(Register.data, byte) }
    drain()
    #expect(sink.text == "hello")
  }

  /// A guest that floods a console nobody reads: memory is bounded, the loss is counted, what was accepted is kept.
  @Test func output_flood_isBoundedAndCounted() throws {
    let sink = SlowSink()
    try serial.attach(to: loop, sink: sink)
    for index in 0..<300_000 { write(Register.data, UInt8(truncatingIfNeeded: index % 251)) }
    #expect(serial.lostOutput.value == UInt64(300_000 - (64 << 10)))
    #expect(read(Register.lineStatus) & 0x60 == 0, "a full ring reads as a busy transmitter")
    #expect(read(Register.identification) & 0x0f == 1)
    sink.allow(1 << 20)
    drain()
    let kept = sink.bytes == (0..<(64 << 10)).map { UInt8(truncatingIfNeeded: $0 % 251) }
    #expect(kept)
    #expect(read(Register.lineStatus) & 0x60 == 0x60)
  }

  @Test func output_floodWhileTheReaderIsSlow_staysBounded() throws {
    let sink = SlowSink()
    try serial.attach(to: loop, sink: sink)
    var accepted = 0
    for _ in 0..<20 {
      for _ in 0..<50_000 { write(Register.data, 0x55) }
      sink.allow(100)
      drain()
    }
    sink.allow(1 << 30)
    drain()
    drain()
    accepted = sink.bytes.count
    #expect(accepted + Int(serial.lostOutput.value) == 1_000_000)
    #expect(accepted <= 20 * 100 + (128 << 10))
  }

  @Test func output_slowReader_getsEveryByteInOrder() throws {
    let sink = SlowSink()
    try serial.attach(to: loop, sink: sink)
    var sent: [UInt8] = []
    for round in 0..<100 {
      for index in 0..<50 {
        let byte = UInt8(truncatingIfNeeded: round * 50 + index)
        sent.append(byte)
        write(Register.data, byte)
      }
      sink.allow(round % 7 * 10)
      drain()
    }
    sink.allow(1 << 20)
    drain()
    #expect(sink.bytes == sent)
    #expect(serial.lostOutput.value == 0)
  }

  /// A driver of a 16550 fills its FIFO whenever the transmitter is empty, and looks at nothing in between.
  @Test(arguments: [0, 1, 15]) func output_aFIFOAtATime_losesNothing(before: Int) throws {
    let sink = SlowSink()
    try serial.attach(to: loop, sink: sink)
    write(Register.interruptEnable, 2)
    var sent: [UInt8] = []
    func send(_ count: Int) {
      for _ in 0..<count {
        sent.append(UInt8(truncatingIfNeeded: sent.count % 251))
        write(Register.data, sent[sent.count - 1])
      }
    }
    send(before)
    var bursts = 0
    for round in 0..<200 {
      // Until nothing asks for more, neither the status nor an interrupt.
      while read(Register.identification) & 0x0f == 2 || read(Register.lineStatus) & 0x20 != 0 {
        #expect(read(Register.lineStatus) & 0x20 != 0, "an interrupt says what the status does")
        send(16)
        bursts += 1
      }
      _ = interrupts
      sink.allow(round % 7 * 5)
      drain()
      #expect((read(Register.lineStatus) & 0x20 != 0) == (interrupts > 0), "who waits for room is told of it")
    }
    #expect(bursts > (64 << 10) / 16 && serial.lostOutput.value == 0)
    sink.allow(1 << 20)
    drain()
    #expect(sink.bytes == sent)
  }

  @Test func interrupt_transmitterEmpty_isNotRaisedByEnablingItWithoutRoom() throws {
    try serial.attach(to: loop, sink: SlowSink())
    for _ in 0..<(64 << 10) - 15 { write(Register.data, 0x41) }
    write(Register.interruptEnable, 2)
    #expect(interrupts == 0 && read(Register.identification) & 0x0f == 1)
  }

  /// With a real loop and a pipe: a reader that comes late still gets everything.
  @Test(.timeLimit(.minutes(1))) func output_toAPipeReadLate_arrivesWhole() throws {
    var ends: [CInt] = [0, 0]
    #expect(unsafe pipe(&ends) == 0)
    let setPipeSize: CInt = 1031  // F_SETPIPE_SZ
    #expect(fcntl(ends[1], setPipeSize, 4096) == 4096)
    // Far more than the pipe holds, and what it does not hold the port does.
    let count = 60_000
    try serial.attach(to: loop, sink: DescriptorSink(ends[1]))
    let thread = try HostThread.start(name: "device") { [loop] in loop.run() }
    for index in 0..<count { write(Register.data, UInt8(truncatingIfNeeded: index % 253)) }
    #expect(waitUntil { unread(ends[0]) > 0 })
    var got: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 4096)
    let deadline = Deadline(seconds: 10)
    while got.count < count, !deadline.passed {
      HostThread.waitReadable(ends[0], timeoutMilliseconds: 100)
      guard isReadable(ends[0]) else { continue }
      let size = unsafe lx_read(ends[0], &buffer, buffer.count)
      if size > 0 { got += buffer[..<size] }
    }
    loop.stop()
    thread.join()
    #expect(serial.lostOutput.value == 0)
    let whole = got == (0..<count).map { UInt8(truncatingIfNeeded: $0 % 253) }
    #expect(whole, "\(got.count) bytes of \(count)")
    for end in ends { close(end) }
  }

  /// Bytes that wait in a pipe.
  private func unread(_ pipe: CInt) -> Int {
    var count: CInt = 0
    return unsafe ioctl(pipe, UInt(FIONREAD), &count) < 0 ? -1 : Int(count)
  }

  @Test func output_readerGone_guestGoesOn() throws {
    var ends: [CInt] = [0, 0]
    #expect(unsafe pipe(&ends) == 0)
    signal(SIGPIPE, SIG_IGN)
    try serial.attach(to: loop, sink: DescriptorSink(ends[1]))
    close(ends[0])
    for _ in 0..<10 {
      for _ in 0..<1000 { write(Register.data, 0x41) }
      drain()
    }
    #expect(serial.lostOutput.value == 0)
    #expect(read(Register.lineStatus) & 0x60 == 0x60)
    close(ends[1])
  }

  /// epoll tells of a pipe without a reader whether asked or not: it must not be listened to while nothing waits.
  @Test(.timeLimit(.minutes(1))) func output_readerGone_costsNoTime() throws {
    var ends: [CInt] = [0, 0]
    #expect(unsafe pipe(&ends) == 0)
    signal(SIGPIPE, SIG_IGN)
    try serial.attach(to: loop, sink: DescriptorSink(ends[1]))
    let spent = Mutex(0)
    let thread = try HostThread.start(name: "device") { [loop] in
      loop.run()
      var time = timespec()
      unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
      spent.withLock { [time] in $0 = time.tv_sec * 1000 + time.tv_nsec / 1_000_000 }
    }
    close(ends[0])
    for _ in 0..<1000 { write(Register.data, 0x41) }
    usleep(300_000)  // as long as a loop that spins would need to show itself
    loop.stop()
    thread.join()
    #expect(spent.withLock { $0 } < 100, "milliseconds of the device thread")
    close(ends[1])
  }

  @Test func input_arrivesInOrderAndDataReadyFollows() {
    #expect(read(Register.lineStatus) & 1 == 0)
    #expect(read(Register.data) == 0)
    #expect(serial.receive([1, 2, 3]) == 3)
    for expected in [1, 2, 3] as [UInt8] {
      #expect(read(Register.lineStatus) & 1 == 1)
      #expect(read(Register.data) == expected)
    }
    #expect(read(Register.lineStatus) & 1 == 0)
  }

  @Test func input_overflow_isRefusedNotLost() {
    let bytes = [UInt8](repeating: 9, count: 1000)
    #expect(serial.receive(bytes[...]) == 1000)
    #expect(serial.receive(bytes[...]) == 24)
    #expect(serial.receive(bytes[...]) == 0)
    _ = read(Register.data)
    #expect(serial.receive([7, 8]) == 1)
    #expect(!isReadable(serial.inputRoomDescriptor))
    for _ in 0..<600 { _ = read(Register.data) }
    #expect(isReadable(serial.inputRoomDescriptor), "whoever was refused is told when half is free")
  }

  @Test func input_FIFOReset_empties() {
    _ = serial.receive([1, 2, 3])
    write(Register.identification, 0x07)
    #expect(read(Register.lineStatus) & 1 == 0)
    // Whoever was refused is told of the room.
    #expect(serial.receive([UInt8](repeating: 1, count: 2000)[...]) == 1024)
    #expect(!isReadable(serial.inputRoomDescriptor))
    write(Register.identification, 0x07)
    #expect(isReadable(serial.inputRoomDescriptor))
  }

  @Test func interrupt_received_isRaisedPerArrivalAndWhileMoreWaits() {
    write(Register.interruptEnable, 1)
    #expect(interrupts == 0)
    _ = serial.receive([1, 2])
    #expect(interrupts == 1)
    #expect(read(Register.identification) & 0x0f == 4)
    #expect(read(Register.data) == 1)
    #expect(interrupts == 1, "an edge-triggered line is raised again for what is left")
    #expect(read(Register.data) == 2)
    #expect(interrupts == 0)
    #expect(read(Register.identification) & 0x0f == 1)
  }

  @Test func interrupt_receivedBeforeEnabled_isRaisedWhenEnabled() {
    _ = serial.receive([1])
    #expect(interrupts == 0)
    write(Register.interruptEnable, 1)
    #expect(interrupts == 1)
  }

  @Test func interrupt_transmitterEmpty_isRaisedWhenEnabledAndClearedByIdentification() {
    write(Register.interruptEnable, 2)
    #expect(interrupts == 1)
    #expect(read(Register.identification) & 0x0f == 2)
    #expect(read(Register.identification) & 0x0f == 1, "reading the identification clears the cause")
    write(Register.data, 0x41)
    #expect(interrupts == 1)
    #expect(read(Register.identification) & 0x0f == 2)
    write(Register.interruptEnable, 2)
    #expect(interrupts == 0, "already enabled: no new cause")
    write(Register.interruptEnable, 0)
    write(Register.interruptEnable, 2)
    #expect(interrupts == 1)
  }

  @Test func interrupt_transmitterEmpty_waitsWhileTheRingIsFull() throws {
    let sink = SlowSink()
    try serial.attach(to: loop, sink: sink)
    for _ in 0..<(64 << 10) + 5 { write(Register.data, 0x41) }
    _ = interrupts
    write(Register.interruptEnable, 2)
    _ = read(Register.identification)
    _ = interrupts
    sink.allow(1 << 20)
    drain()
    #expect(interrupts == 1, "room again: the guest that waits for it is told")
    #expect(read(Register.identification) & 0x0f == 2)
  }

  /// What waited for a slow console is not saved: the guest that waits for room there finds it on the new machine.
  @Test func interrupt_transmitterEmpty_comesAfterARestoreWithoutTheRing() throws {
    try serial.attach(to: loop, sink: SlowSink())
    for _ in 0..<(64 << 10) + 5 { write(Register.data, 0x41) }
    write(Register.interruptEnable, 2)
    _ = read(Register.identification)
    var writer = StateWriter()
    serial.save(to: &writer)
    let newLine = try InterruptLine()
    let restored = try Serial8250(line: newLine)
    var reader = StateReader(writer.bytes)
    try restored.restore(from: &reader, isTrial: false)
    restored.resume()
    #expect(lx_eventfd_take(newLine.descriptor) == 1)
    #expect(restored.read(offset: Register.identification, size: 1) & 0x0f == 2)
  }

  @Test func interrupt_receivedComesBeforeTransmitterEmpty() {
    write(Register.interruptEnable, 3)
    _ = serial.receive([1])
    #expect(read(Register.identification) & 0x0f == 4)
    _ = read(Register.data)
    #expect(read(Register.identification) & 0x0f == 2)
  }

  @Test func loopback_bytesComeBackAndStayInside() throws {
    let sink = MemorySink()
    try serial.attach(to: loop, sink: sink)
    write(Register.modemControl, 0x10)
    write(Register.data, 0x5a)
    #expect(read(Register.lineStatus) & 1 == 1)
    #expect(read(Register.data) == 0x5a)
    for _ in 0..<5000 { write(Register.data, 1) }
    #expect(serial.receive([1]) == 0)
    drain()
    #expect(sink.text == "")
  }

  @Test func loopback_raisesTheReceiveInterrupt() {
    write(Register.interruptEnable, 1)
    write(Register.modemControl, 0x10)
    _ = interrupts
    write(Register.data, 1)
    #expect(interrupts == 1)
  }

  @Test(arguments: [(0x10, 0x00), (0x11, 0x20), (0x12, 0x10), (0x14, 0x40), (0x18, 0x80), (0x1f, 0xf0), (0x0f, 0xb0)])
  func loopback_modemOutputsAreWiredToInputs(control: UInt8, status: UInt8) {
    write(Register.modemControl, control)
    #expect(read(Register.modemStatus) == status)
  }

  @Test func divisorLatch_hidesDataAndInterruptEnable() {
    write(Register.lineControl, 0x83)
    write(Register.data, 0x34)
    write(Register.interruptEnable, 0x12)
    #expect(read(Register.data) == 0x34)
    #expect(read(Register.interruptEnable) == 0x12)
    write(Register.lineControl, 0x03)
    #expect(read(Register.interruptEnable) == 0)
    #expect(read(Register.data) == 0)
  }

  @Test func scratch_keepsItsByte() {
    for value in [0, 0x55, 0xaa, 0xff] as [UInt8] {
      write(Register.scratch, value)
      #expect(read(Register.scratch) == value)
    }
  }

  @Test(arguments: [2, 4, 8])
  func access_widerThanAByte_readsOnesAndIsIgnored(size: Int) {
    for offset in 0..<8 as Range<UInt64> {
      #expect(serial.read(offset: offset, size: size) == (size == 8 ? UInt64.max : (1 << UInt64(size * 8)) - 1))
      serial.write(offset: offset, size: size, value: UInt64.max)
    }
    #expect(read(Register.scratch) == 0)
  }
}

@Suite("Family 16: entropy back-pressure") struct EntropyTests {
  private let data = TestDriver.buffers

  @Test func entropy_differsFromRequestToRequest() throws {
    let driver = try TestDriver(Entropy())
    driver.start()
    driver.add(0, [.writable(data, 64)])
    driver.add(0, [.writable(data + 64, 64)])
    driver.kick()
    #expect(driver.bytes(data, 64) != driver.bytes(data + 64, 64))
    #expect(Set(driver.bytes(data, 64)).count > 20)
  }

  @Test func entropy_hugeRequests_areBoundedEach() throws {
    let driver = try TestDriver(Entropy())
    driver.start(size: 8)
    for _ in 0..<8 { driver.add(0, [.writable(0x20_0000, 0x10_0000)]) }
    driver.kick()
    #expect(driver.takeUsed().map(\.written) == [UInt32](repeating: 4096, count: 8))
    #expect(driver.bytes(0x20_1000, 64) == [UInt8](repeating: 0, count: 64))
  }

  /// One visit does at most a queue's worth, or what can be done in its time, and comes back: another vCPU that adds all the time
  /// can't keep the thread.
  @Test func entropy_visitIsBounded() throws {
    let driver = try TestDriver(Entropy())
    driver.start(size: 256)
    for _ in 0..<256 { driver.add(0, [.writable(data, 1)]) }
    driver.write(0x50, 0)
    driver.mmio.ready(tag: 0, events: 1)
    let first = driver.takeUsed().count
    #expect(first > 0 && isReadable(driver.mmio.notifyDescriptors[0]))
    driver.run()
    #expect(first + driver.takeUsed().count == 256)
  }
}
