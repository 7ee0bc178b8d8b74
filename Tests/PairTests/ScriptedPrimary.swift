import CLinux
import Devices
import Glibc
import GuestMemory
import MiniVMM
import Replication
import StateCodec
import Synchronization

@testable import Pair

/// Whether tests with a virtual machine can run here.
let hasKVM = (try? KVMSystem()) != nil

/// A secondary with a machine of 16 MiB, a card and a disk, and a primary whose every word a test says.
final class ScriptedPrimary {
  static let key = SharedKey([UInt8](repeating: 0x42, count: 32))
  static let pageCount = 4096
  static let diskSize = 1 << 20

  let channel: Channel
  let side: SecondarySide
  let machine: Machine
  let backend: PairBackend
  let diskPath: String
  private let life = Life()
  private var threads: [HostThread] = []

  /// What its threads share.
  private final class Life: Sendable {
    let ending = Mutex<SecondarySide.Ending?>(nil)
    let isOver = Atomic(false)
    let isHeard = Atomic(false)
  }

  init(mode: ReplicationMode = .remus) throws {
    let machine = try Self.makeMachine(rollsBack: true)
    let (disk, path) = try Self.makeDisk()
    let gate = OutputGate(mode: mode, clock: { lx_monotonic_ns() }, send: { _ in true })
    let wire = Wire()
    let (listening, calling) = try beatPaths()
    let side = SecondarySide(refreshes: false, beats: listening)
    self.side = side
    let backend = try PairBackend(tap: wire, side: .following, gate: gate, log: InputLog(), traffic: side)
    let successor = try PrimarySide(PrimarySide.Options(mode: mode), tap: nil)
    let registers = PairRegisters(machine.memory, line: try InterruptLine())
    (self.machine, self.backend, diskPath) = (machine, backend, path)
    var ends: [CInt] = [0, 0]
    _ = unsafe socketpair(AF_UNIX, CInt(SOCK_STREAM.rawValue), 0, &ends)
    let theirs = ends[1]
    side.mode = mode
    let follower = try HostThread.start(name: "follow") { [life] in
      guard let channel = try? Channel(descriptor: theirs, side: .secondary, key: Self.key) else { return }
      let result = side.follow(channel) { _ in
        .init(
          machine: machine, backend: backend, disks: [disk], mac: [], tap: nil, successor: successor,
          registers: registers)
      }
      life.ending.withLock { $0 = result }
    }
    channel = try Channel(descriptor: ends[0], side: .primary, key: Self.key)
    // Before any sign of life.
    try channel.awaitAdmission([], term: 1)
    calling.begin(channel)
    let beats = try HostThread.start(name: "beats") { [channel, life] in
      var number: UInt64 = 0
      while !life.isOver.load(ordering: .relaxed), (try? channel.send(.heartbeat(term: 1, time: number))) != nil {
        calling.send(.init(term: 1, hasLeft: false))
        // It answers the first that it hears.
        if case .beat = calling.receive() { life.isHeard.store(true, ordering: .relaxed) }
        number += 1
        usleep(10_000)
      }
    }
    let sender = try HostThread.start(name: "send") { [channel] in _ = channel.runSender() }
    threads = [follower, beats, sender]
    for _ in 0..<2000 where !life.isHeard.load(ordering: .relaxed) { usleep(1000) }
  }

  deinit {
    die()
    machine.stop()
    unsafe unlink(diskPath)
  }

  /// Ends the primary; how its secondary ended.
  @discardableResult
  func die() -> SecondarySide.Ending? {
    life.isOver.store(true, ordering: .relaxed)
    channel.close()
    for thread in threads { thread.join() }
    threads = []
    return life.ending.withLock { $0 }
  }

  /// The next message that is no sign of life; nil when the secondary ends the channel, or says nothing for two seconds.
  func next() -> Message? {
    while let message = try? channel.receive(within: 2000) {
      guard case .heartbeat = message else { return message }
    }
    return nil
  }

  /// Has the secondary load a first checkpoint, and thus be one that could take over.
  func join(epoch: UInt64 = 1, state: [UInt8]) throws -> Bool {
    try channel.sendBulk(Self.checkpoint(epoch, state: state))
    return loads(epoch)
  }

  /// Whether the secondary says RECEIVED and LOADED next: two threads do.
  func loads(_ epoch: UInt64) -> Bool {
    var said: Set<String> = []
    while said.count < 2 {
      switch next() {
      case .received(epoch): said.insert("received")
      case .loaded(epoch, _): said.insert("loaded")
      default: return false
      }
    }
    return true
  }

  static func checkpoint(
    _ epoch: UInt64, pages: UInt64 = 0, given: [UInt64] = [0], mappings: [UInt8] = [], state: [UInt8]
  ) -> Message {
    .checkpoint(
      epoch: epoch, pages: pages, given: given, mappings: mappings, addresses: CardAddresses().encoded, held: [],
      wait: 0, search: .on, state: state)
  }

  /// Whole pages, each of one byte's value.
  static func pages(_ epoch: UInt64, _ pages: [(number: UInt64, byte: UInt8)]) -> Message {
    var run: [UInt8] = []
    for page in pages {
      let contents = [UInt8](repeating: page.byte, count: PageRun.pageSize)
      unsafe contents.withUnsafeBytes { unsafe PageRun.append(page.number, $0, to: &run) }
    }
    return .pages(epoch: epoch, run: run)
  }

  /// What the disk's file holds.
  func diskByte(at position: Int) -> UInt8? {
    let file = unsafe open(diskPath, O_RDONLY)
    defer { close(file) }
    var byte: UInt8 = 0
    return unsafe lx_pread(file, &byte, 1, Int64(position)) == 1 ? byte : nil
  }

  private static func makeDisk() throws -> (FollowerDisk, String) {
    var name = Array("/tmp/minivmm-disk-XXXXXX".utf8CString)
    let file = unsafe mkstemp(&name)
    _ = lx_ftruncate(file, Int64(diskSize))
    close(file)
    let path = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return (try FollowerDisk(try DiskFile(path: path, readOnly: false)), path)
  }

  /// With a clock that has state, as every machine's devices have.
  private static func makeMachine(rollsBack: Bool) throws -> Machine {
    let memory = try GuestMemory(size: UInt64(pageCount) << 12, rollsBack: rollsBack)
    var configuration = Machine.Configuration(cpus: 1, memory: memory, eventLoop: try EventLoop())
    configuration.dirtyTracking = .bitmap
    return try Machine(configuration, kvm: try KVMSystem())
  }

  /// The state of a machine like the secondary's, which has halted.
  static func machineState() throws -> [UInt8] {
    let machine = try haltedMachine()
    defer { machine.stop() }
    machine.pause()
    return try machine.save()
  }

  /// A machine like the secondary's that runs, and does nothing.
  static func haltedMachine() throws -> Machine {
    let machine = try makeMachine(rollsBack: false)
    let file = unsafe lx_memfd_plain("kernel")
    defer { lx_close(file) }
    let kernel = haltingKernel()
    _ = unsafe kernel.withUnsafeBytes { unsafe lx_pwrite(file, $0.baseAddress, $0.count, 0) }
    try machine.load(BootSource(kernel: file))
    try machine.start()
    return machine
  }

  /// An ELF file of two instructions at 2 MiB (cli; hlt), which a PVH note enters.
  private static func haltingKernel() -> [UInt8] {
    let (code, entry) = ([0xfa, 0xf4, 0xeb, 0xfc] as [UInt8], UInt64(0x20_0000))
    var note = StateWriter()
    for word in [4, 4, 18] as [UInt32] { note.put(word) }
    for byte in Array("Xen\0".utf8) { note.put(byte) }
    note.put(UInt32(entry))
    var out = StateWriter()
    for byte in [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1] + [UInt8](repeating: 0, count: 9) { out.put(byte) }
    for half in [2, 62] as [UInt16] { out.put(half) }
    out.put(UInt32(1))
    for word in [entry, 64, 0] as [UInt64] { out.put(word) }
    out.put(UInt32(0))
    for half in [64, 56, 2, 0, 0, 0] as [UInt16] { out.put(half) }
    let segments: [(type: UInt32, offset: Int, address: UInt64, size: Int)] = [
      (1, 176, entry, code.count), (4, 176 + code.count, 0, note.bytes.count),
    ]
    for segment in segments {
      out.put(segment.type)
      out.put(UInt32(7))
      for word in [UInt64(segment.offset), segment.address, segment.address] { out.put(word) }
      for word in [segment.size, segment.size, 4] { out.put(UInt64(word)) }
    }
    return out.bytes + code + note.bytes
  }
}
