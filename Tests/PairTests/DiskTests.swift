import CLinux
import Devices
import Glibc
import GuestMemory
import Pair
import Synchronization
import Testing

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

  init(contents: [UInt8], limit: Int = 256 << 20) throws {
    var paths: [String] = []
    for _ in 0..<2 {
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

  /// Hands what the primary changed to the secondary.
  func ship(epoch: UInt64) {
    for change in changes.take() {
      #expect(follower.keep(change, epoch: epoch))
    }
  }
}

@Suite("A pair's disks") struct DiskTests {
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

  @Test func firstCopy_tellsDataAndSkipsHoles() throws {
    let pair = try DiskPair(contents: [UInt8](repeating: 7, count: DiskPair.size))
    // A hole of half the disk.
    #expect(pair.mirrored.discard(position: 256 << 10, count: 512 << 10) == .done)
    _ = pair.changes.take()
    var position: UInt64? = 0
    while let at = position { position = try pair.mirrored.tellContents(from: at, limit: 64 << 10) }
    let told = pair.changes.take()
    #expect(told.reduce(0) { $0 + $1.weight } < 600 << 10)
    #expect(
      told.first?.position == 0 && told.last.map { $0.position + UInt64($0.weight - 64) } == UInt64(DiskPair.size))
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
