import CLinux
import CTestSupport
import Devices
import Glibc
import GuestMemory
import Harness
import Replication
import Synchronization
import Testing

@testable import Pair

/// A primary's disk and its secondary's, each with a guest that uses it, and what each guest must see.
private final class DiskPair {
  static let size = 1 << 20
  let paths: [String]
  let memory: GuestMemory
  let mirrored: MirroredDisk
  let follower: FollowerDisk
  let changes = Changes()

  /// What the primary's disk told.
  final class Changes: Sendable {
    private let list = Mutex<[DiskChange]>([])
    func add(_ change: DiskChange) { list.withLock { $0.append(change) } }
    func take() -> [DiskChange] {
      list.withLock { list in
        defer { list = [] }
        return list
      }
    }
  }
  var primaryView: [UInt8]
  var followerView: [UInt8]

  /// - Parameter old: what the follower's file holds before; `contents` if left out.
  init(contents: [UInt8], old: [UInt8]? = nil, limit: Int = 256 << 20) throws {
    var paths: [String] = []
    for contents in [contents, old ?? contents] {
      var name = Array("/tmp/minivmm-disk-XXXXXX".utf8CString)
      let file = unsafe mkstemp(&name)
      _ = unsafe contents.withUnsafeBytes { unsafe lx_pwrite(file, $0.baseAddress, $0.count, 0) }
      close(file)
      paths.append(String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }
    self.paths = paths
    memory = try GuestMemory(size: 4 << 20)
    mirrored = MirroredDisk(try DiskFile(path: paths[0], readOnly: false))
    follower = try FollowerDisk(try DiskFile(path: paths[1], readOnly: false), limit: limit)
    primaryView = contents
    followerView = contents
    mirrored.mirror { [changes] in changes.add($0) }
  }

  deinit { for path in paths { unsafe unlink(path) } }

  func buffers(_ count: Int) -> GuestBuffers {
    var buffers = GuestBuffers()
    // Two pieces, so that neither begins at a page.
    _ = buffers.append(address: 0x1_0123, count: UInt64(count / 2), in: memory)
    _ = buffers.append(address: 0x10_0777, count: UInt64(count - count / 2), in: memory)
    return buffers
  }

  func write(_ disk: any Disk, _ bytes: [UInt8], at position: Int) {
    let buffers = buffers(bytes.count)
    unsafe bytes.withUnsafeBytes { _ = unsafe memory.scatter($0, to: buffers) }
    #expect(
      disk.write(memory, buffers, offset: 0, count: UInt64(bytes.count), position: UInt64(position), nowait: false)
        == .done)
  }

  func read(_ disk: any Disk, _ count: Int, at position: Int) -> [UInt8] {
    let buffers = buffers(count)
    #expect(disk.read(memory, buffers, count: UInt64(count), position: UInt64(position), nowait: false) == .done)
    var bytes = [UInt8](repeating: 0, count: count)
    _ = unsafe bytes.withUnsafeMutableBytes { unsafe memory.gather(buffers, offset: 0, into: $0) }
    return bytes
  }

  func file(_ index: Int) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.size)
    let fd = unsafe open(paths[index], O_RDONLY)
    _ = unsafe bytes.withUnsafeMutableBytes { unsafe lx_pread(fd, $0.baseAddress, $0.count, 0) }
    close(fd)
    return bytes
  }

  /// How much space a file takes, in units of 512 bytes.
  func blocks(_ index: Int) -> Int {
    var status = stat()
    return unsafe stat(paths[index], &status) == 0 ? Int(status.st_blocks) : -1
  }

  /// The descriptor under which this process has the secondary's file open.
  func followerDescriptor() -> CInt? {
    var wanted = stat()
    guard unsafe stat(paths[1], &wanted) == 0 else { return nil }
    return (0..<1024).first { number in
      var status = stat()
      return unsafe fstat(number, &status) == 0 && (status.st_dev, status.st_ino) == (wanted.st_dev, wanted.st_ino)
    }
  }

  /// Hands what the primary changed to the secondary.
  func ship(epoch: UInt64) {
    for change in changes.take() {
      #expect(follower.keep(change, epoch: epoch))
    }
  }
}

@Suite("A pair's disks") struct DiskTests {
  /// What a checkpoint brought is on the disk soon, and not only after a takeover.
  @Test(.enabled(if: unwrittenPages("/etc/passwd") >= 0, "cachestat needs Linux 6.5")) func load_isMadeDurableBehindIt()
    throws
  {
    let pair = try DiskPair(contents: [UInt8](repeating: 1, count: DiskPair.size))
    let sync = try DiskSync([pair.follower])
    defer { sync.end() }
    for epoch in 1...3 as ClosedRange<UInt64> {
      pair.write(pair.mirrored, [UInt8](repeating: UInt8(epoch), count: 1 << 16), at: 0)
      pair.ship(epoch: epoch)
      #expect(pair.follower.load(epoch: epoch) == 0)
      #expect(pair.follower.isUnsynced && unwrittenPages(pair.paths[1]) > 0)
      sync.loaded()
      #expect(waitUntil { unwrittenPages(pair.paths[1]) == 0 })
    }
  }

  /// Linux tells of a failed fdatasync once: a secondary that heard of it may not serve that file, though the next one succeeds.
  @Test func sync_thatFailed_isRemembered() throws {
    let pair = try DiskPair(contents: [UInt8](repeating: 1, count: DiskPair.size))
    pair.write(pair.mirrored, [UInt8](repeating: 2, count: 1 << 16), at: 0)
    pair.ship(epoch: 1)
    #expect(pair.follower.load(epoch: 1) == 0)

    // What can't be synchronised, for the moment, in the file's place.
    let file = try #require(pair.followerDescriptor())
    let (kept, other) = (dup(file), lx_eventfd(0))
    dup2(other, file)
    pair.follower.sync()
    dup2(kept, file)
    close(kept)
    close(other)

    #expect(!pair.follower.isUnsynced && pair.follower.load(epoch: 2) == EINVAL && pair.follower.takeOver() == EINVAL)
  }

  /// Random work of both guests over epochs, and a takeover at a random point: the survivor's file is its guest's view, and
  /// every load is the primary's file at the cut.
  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64]) func random_epochsAndTakeover(seed: UInt64) throws {
    var random = Numbers(seed: seed)
    let pair = try DiskPair(contents: (0..<DiskPair.size).map { _ in UInt8.random(in: 0...255, using: &random) })
    var epoch: UInt64 = 1
    for _ in 0..<400 {
      let count = 512 * Int.random(in: 1...24, using: &random)
      let position = 512 * Int.random(in: 0...(DiskPair.size - count) / 512, using: &random)
      let bytes = (0..<count).map { _ in UInt8.random(in: 0...255, using: &random) }
      switch random.next() % 10 {
      case 0...2:
        pair.write(pair.mirrored, bytes, at: position)
        pair.primaryView.replaceSubrange(position..<position + count, with: bytes)
      case 3...5:
        pair.write(pair.follower, bytes, at: position)
        pair.followerView.replaceSubrange(position..<position + count, with: bytes)
      case 6:
        let zeros = [UInt8](repeating: 0, count: count)
        for disk in [pair.mirrored, pair.follower] as [any Disk] {
          #expect(
            disk.writeZeroes(position: UInt64(position), count: UInt64(count), unmap: random.next() % 2 == 0) == .done)
        }
        pair.primaryView.replaceSubrange(position..<position + count, with: zeros)
        pair.followerView.replaceSubrange(position..<position + count, with: zeros)
      case 7, 8:
        #expect(pair.read(pair.mirrored, count, at: position) == Array(pair.primaryView[position..<position + count]))
        #expect(
          pair.read(pair.follower, count, at: position) == Array(pair.followerView[position..<position + count]),
          "seed \(seed)")
        pair.ship(epoch: epoch)
      default:
        pair.ship(epoch: epoch)
        let cut = pair.primaryView
        epoch += 1
        // The primary goes on while the secondary loads: that belongs to the next epoch.
        pair.write(pair.mirrored, bytes, at: position)
        pair.primaryView.replaceSubrange(position..<position + count, with: bytes)
        pair.ship(epoch: epoch)
        #expect(pair.follower.load(epoch: epoch - 1) == 0)
        pair.followerView = cut
        #expect(pair.file(1) == cut, "seed \(seed): the file is the checkpoint's disk")
      }
    }
    #expect(pair.file(0) == pair.primaryView)
    #expect(pair.follower.takeOver() == 0)
    #expect(
      pair.file(1) == pair.followerView, "seed \(seed): what clients may have been told, without the unfinished epoch")
    pair.write(pair.follower, [UInt8](repeating: 0xee, count: 512), at: 4096)
    #expect(pair.file(1)[4096] == 0xee, "from then on the file itself")
  }

  /// Holes at the beginning, in the middle and at the end, and a follower's file that was another disk: they become the
  /// same, and what was no data takes no space.
  @Test func firstCopy_holesAreZerosInAFileThatHeldAnother() throws {
    let pair = try DiskPair(
      contents: [UInt8](repeating: 7, count: DiskPair.size), old: [UInt8](repeating: 0xa5, count: DiskPair.size))
    for hole in [0..<64, 256..<512, 896..<1024] {
      #expect(
        pair.mirrored.discard(position: UInt64(hole.lowerBound) << 10, count: UInt64(hole.count) << 10) == .done)
    }
    _ = pair.changes.take()
    var position: UInt64? = 0
    while let at = position { position = try pair.mirrored.tellContents(from: at, limit: 64 << 10) }
    let told = pair.changes.take()
    #expect(told.reduce(0) { $0 + $1.weight } < 600 << 10, "holes are not told byte by byte")
    for change in told { #expect(pair.follower.make(change) == 0) }
    #expect(pair.file(1) == pair.file(0))
    #expect(pair.blocks(1) <= pair.blocks(0))
  }

  /// A change is made at one go on the other side: it must not hear nothing for long.
  @Test func firstCopy_tellsALargeHoleInPieces() throws {
    let (disk, changes, path) = try sparseDisk(3 << 30)
    defer { unsafe unlink(path) }
    var position: UInt64? = 0
    while let at = position { position = try disk.tellContents(from: at, limit: 1 << 20) }
    let told = changes.take()
    var end: UInt64 = 0
    for change in told {
      #expect(change.position == end, "without a gap")
      switch change.kind {
      case .write(let bytes): end += UInt64(bytes.count)
      case .zero(let count, unmap: true):
        #expect(count <= 256 << 20)
        end += count
      default: Issue.record("\(change)")
      }
    }
    #expect(end == 3 << 30 && told.count <= 14)
  }

  @Test func changesOutsideTheDisk_orTooMany_areRefused() throws {
    let pair = try DiskPair(contents: [UInt8](repeating: 7, count: DiskPair.size))
    let end = UInt64(DiskPair.size)
    #expect(!pair.follower.keep(DiskChange(position: end, kind: .write([1])), epoch: 1))
    #expect(!pair.follower.keep(DiskChange(position: .max, kind: .zero(count: 1, unmap: false)), epoch: 1))
    #expect(!pair.follower.keep(DiskChange(position: 1, kind: .discard(count: .max)), epoch: 1))
    #expect(pair.follower.keep(DiskChange(position: end, kind: .write([])), epoch: 1))
    let other = try DiskPair(contents: [UInt8](repeating: 7, count: DiskPair.size), limit: 1000)
    let small = other.follower
    #expect(small.keep(DiskChange(position: 0, kind: .write([UInt8](repeating: 1, count: 900))), epoch: 1))
    #expect(!small.keep(DiskChange(position: 0, kind: .write([UInt8](repeating: 1, count: 900))), epoch: 1))
  }
}

/// What keeps a secondary from being told more than it can keep.
@Suite("A pair's disks: what is told and not loaded") struct DiskBacklogTests {
  @Test func anEpochsChanges_askForACheckpoint_once() {
    var backlog = DiskBacklog()
    var asked: [Int] = []
    for megabyte in 1...200 where backlog.told(1 << 20, epoch: 1) { asked.append(megabyte) }
    #expect(asked == [65])
    for megabyte in 1...100 where backlog.told(1 << 20, epoch: 2) { asked.append(megabyte) }
    #expect(asked == [65, 65], "each epoch anew")
    #expect(backlog.bytes == 300 << 20)
  }

  @Test func whatIsLoaded_isNoBacklog() {
    var backlog = DiskBacklog()
    for epoch in 1...4 as ClosedRange<UInt64> { _ = backlog.told(Int(epoch), epoch: epoch) }
    backlog.loaded(2)
    #expect(backlog.bytes == 7)
    backlog.loaded(1)
    #expect(backlog.bytes == 7)
    backlog.loaded(9)
    #expect(backlog.bytes == 0)
    #expect(!backlog.told(5, epoch: 10) && backlog.bytes == 5)
  }

  /// A write waits on its worker while the other side is behind, not on the device thread, and not for ever when somebody has
  /// to wait for it.
  @Test(arguments: ["caughtUp", "hurried", "lost"]) func write_waits(until: String) throws {
    let pair = try DiskPair(contents: [UInt8](repeating: 7, count: DiskPair.size))
    let (isBehind, isDone) = (Shared(true), Shared(false))
    pair.mirrored.mirror(to: { [changes = pair.changes] in changes.add($0) }, waitingWhile: { isBehind.value })
    let buffers = pair.buffers(512)
    let (disk, memory) = (pair.mirrored, pair.memory)
    #expect(disk.write(memory, buffers, offset: 0, count: 512, position: 0, nowait: true) == .wouldBlock)
    let thread = try HostThread.start(name: "worker") {
      let outcome = disk.write(memory, buffers, offset: 0, count: 512, position: 0, nowait: false)
      isDone.value = outcome == .done
    }
    usleep(20_000)
    #expect(!isDone.value && pair.changes.take().isEmpty)
    switch until {
    case "caughtUp": isBehind.value = false
    case "hurried": disk.hurry(true)
    default: disk.mirror(to: nil)
    }
    thread.join()
    #expect(isDone.value)
    #expect(pair.changes.take().count == (until == "lost" ? 0 : 1))
  }

  /// Telling may take as long as the channel or the file makes it; the device thread does not wait behind it.
  @Test func writeBehindAnotherThatIsTold_isOneForAWorker() throws {
    let pair = try DiskPair(contents: [UInt8](repeating: 7, count: DiskPair.size))
    let (isTelling, goes, outcomes) = (Shared(false), Shared(false), Shared(false))
    pair.mirrored.mirror { _ in
      isTelling.value = true
      _ = waitUntil(seconds: 30) { goes.value }
    }
    let buffers = pair.buffers(512)
    let (disk, memory) = (pair.mirrored, pair.memory)
    let worker = try HostThread.start(name: "worker") {
      _ = disk.write(memory, buffers, offset: 0, count: 512, position: 0, nowait: false)
    }
    #expect(waitUntil { isTelling.value })
    let device = try HostThread.start(name: "device") {
      outcomes.value = disk.write(memory, buffers, offset: 0, count: 512, position: 0, nowait: true) == .wouldBlock
    }
    #expect(waitUntil { outcomes.value })
    goes.value = true
    for thread in [worker, device] { thread.join() }
  }

  /// A request in flight at the cut: its change may be told when the checkpoint has been loaded already.
  @Test(arguments: [false, true]) func changeToldLate_comesWithTheNextLoad_orNotAtAll(takesOver: Bool) throws {
    let pair = try DiskPair(contents: [UInt8](repeating: 7, count: DiskPair.size))
    #expect(pair.follower.load(epoch: 1) == 0)
    #expect(pair.follower.keep(DiskChange(position: 512, kind: .write([UInt8](repeating: 9, count: 512))), epoch: 1))
    #expect(pair.follower.keep(DiskChange(position: 512, kind: .write([UInt8](repeating: 5, count: 100))), epoch: 2))
    #expect(pair.file(1)[512] == 7)
    #expect(takesOver ? pair.follower.takeOver() == 0 : pair.follower.load(epoch: 2) == 0)
    #expect(pair.file(1)[512..<612].allSatisfy { $0 == (takesOver ? 7 : 5) })
    #expect(pair.file(1)[612..<1024].allSatisfy { $0 == (takesOver ? 7 : 9) })
  }

  /// A message has a limit, which a request has not.
  @Test func largeWrite_isToldInPieces() throws {
    let size = 40 << 20
    let (disk, changes, path) = try sparseDisk(size)
    defer { unsafe unlink(path) }
    let memory = try GuestMemory(size: 64 << 20)
    for page in stride(from: 0, to: 64 << 20, by: 4096) { try memory.write([UInt8(page >> 20)], at: UInt64(page)) }
    var buffers = GuestBuffers()
    _ = buffers.append(address: 4 << 20, count: UInt64(size), in: memory)
    #expect(disk.write(memory, buffers, offset: 0, count: UInt64(size), position: 0, nowait: false) == .done)
    var told: [UInt8] = []
    for change in changes.take() {
      guard case .write(let bytes) = change.kind else { continue }
      #expect(change.position == UInt64(told.count) && bytes.count <= Message.limit / 2)
      told += bytes
    }
    #expect(told.count == size && stride(from: 0, to: told.count, by: 4096).allSatisfy { told[$0] == $0 >> 20 + 4 })
  }
}

/// A value that several threads look at.
final class Shared: Sendable {
  private let state: Mutex<Bool>
  init(_ value: Bool) { state = Mutex(value) }
  var value: Bool {
    get { state.withLock { $0 } }
    set { state.withLock { $0 = newValue } }
  }
}

private func unwrittenPages(_ path: String) -> Int64 { unsafe ts_unwritten_pages(path) }

/// A disk of one hole, what it tells, and its file, which is the caller's to remove.
private func sparseDisk(_ size: Int) throws -> (MirroredDisk, DiskPair.Changes, String) {
  var name = Array("/tmp/minivmm-disk-XXXXXX".utf8CString)
  let file = unsafe mkstemp(&name)
  #expect(lx_ftruncate(file, Int64(size)) == 0)
  close(file)
  let path = String(decoding: name.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  let (disk, changes) = (MirroredDisk(try DiskFile(path: path, readOnly: false)), DiskPair.Changes())
  disk.mirror { changes.add($0) }
  return (disk, changes, path)
}

/// Random numbers that a seed replays.
struct Numbers: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed &* 0x9e37_79b9_7f4a_7c15 | 1 }
  mutating func next() -> UInt64 {
    state ^= state << 13
    state ^= state >> 7
    state ^= state << 17
    return state
  }
}
