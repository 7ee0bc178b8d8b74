import CLinux
import Devices
import Glibc
import GuestMemory
import Testing

@testable import MiniVMM

/// The snapshot file as a hostile or damaged input: everything wrong with it is an error that names it.
@Suite("Family 18: snapshot file") struct SnapshotFileTests {
  static let ramSize: UInt64 = 2 << 20

  private static let disks = [
    DiskIdentity(capacity: 1 << 30, isReadOnly: false, serial: Array("minivmm-0".utf8), beginning: 1),
    DiskIdentity(capacity: 512, isReadOnly: true, serial: [UInt8](repeating: 65, count: 20), beginning: nil),
  ]

  /// RAM with two runs of pages, one of them the last page, and a state of 100 bytes.
  private func sample() throws -> (memory: GuestMemory, state: [UInt8]) {
    let memory = try GuestMemory(size: Self.ramSize)
    try memory.write([UInt8](repeating: 0xab, count: 3 * 4096), at: 0x1_0000)
    try memory.store(UInt64(1), at: Self.ramSize - 8)
    return (memory, (0..<100).map { UInt8($0) })
  }

  /// A file in memory with these bytes.
  private func file(_ bytes: [UInt8]) throws -> Int32 {
    let descriptor = unsafe lx_memfd_plain("snapshot-test")
    try #require(descriptor >= 0)
    let written = unsafe bytes.withUnsafeBytes { unsafe lx_pwrite(descriptor, $0.baseAddress, $0.count, 0) }
    try #require(written == bytes.count)
    return descriptor
  }

  private func snapshotBytes() throws -> [UInt8] {
    let (memory, state) = try sample()
    let descriptor = unsafe lx_memfd_plain("snapshot-test")
    defer { close(descriptor) }
    let size = try SnapshotFile.write(state: state, disks: Self.disks, memory: memory, to: descriptor)
    var bytes = [UInt8](repeating: 0, count: Int(size))
    let got = unsafe bytes.withUnsafeMutableBytes { unsafe lx_pread(descriptor, $0.baseAddress, $0.count, 0) }
    try #require(got == bytes.count)
    return bytes
  }

  private func read(_ bytes: [UInt8]) throws -> (state: [UInt8], memory: GuestMemory) {
    let descriptor = try file(bytes)
    defer { close(descriptor) }
    let memory = try GuestMemory(size: Self.ramSize)
    return (try SnapshotFile.read(from: descriptor, into: memory), memory)
  }

  @Test func roundTrip_keepsStateAndRAM_andLeavesZeroPagesOut() throws {
    let (memory, state) = try sample()
    let bytes = try snapshotBytes()
    #expect(bytes.count < 5 * 4096, "four pages and little else: \(bytes.count) bytes")
    let restored = try read(bytes)
    #expect(restored.state == state)
    #expect(
      try restored.memory.bytes(at: 0, count: Int(Self.ramSize)) == memory.bytes(at: 0, count: Int(Self.ramSize)))
  }

  @Test func everyTruncation_isRefused() throws {
    let bytes = try snapshotBytes()
    for count in Array(0..<200) + Array(stride(from: 200, to: bytes.count, by: 97)) + [bytes.count - 1] {
      #expect(throws: SnapshotError.self, "\(count) of \(bytes.count) bytes") { try read(Array(bytes.prefix(count))) }
    }
  }

  @Test func everyFlippedBit_isRefused() throws {
    let bytes = try snapshotBytes()
    for index in Array(0..<200) + Array(stride(from: 200, to: bytes.count, by: 61)) {
      // The unused bytes are covered by the checksum as all else is.
      var damaged = bytes
      damaged[index] ^= 1 << UInt8(index & 7)
      #expect(throws: SnapshotError.self, "byte \(index)") { try read(damaged) }
    }
  }

  @Test func otherMagic_isNotASnapshot() throws {
    #expect(throws: SnapshotError.notASnapshot) { try read([UInt8](repeating: 65, count: 4096)) }
    #expect(throws: SnapshotError.notASnapshot) { try read([]) }
  }

  @Test func otherVersion_isNamed() throws {
    var bytes = try snapshotBytes()
    bytes[8] = 99
    #expect(throws: SnapshotError.unsupportedVersion(99)) { try read(bytes) }
  }

  @Test func hugeStateLength_isRefusedBeforeItIsAllocated() throws {
    var bytes = try snapshotBytes()
    bytes.replaceSubrange(24..<32, with: [UInt8](repeating: 0x7f, count: 8))
    #expect(throws: SnapshotError.stateTooLong(0x7f7f_7f7f_7f7f_7f7f)) { try read(bytes) }
  }

  @Test func hugeDiskCount_isRefused() throws {
    var bytes = try snapshotBytes()
    bytes[15] = 0x7f
    #expect(throws: SnapshotError.tooManyDisks(0x7f00_0002)) { try read(bytes) }
  }

  @Test func disks_areSaidBeforeAllIsRead() throws {
    let descriptor = try file(try snapshotBytes())
    defer { close(descriptor) }
    let header = try SnapshotFile.header(of: descriptor)
    #expect(header.disks == Self.disks && header.memorySize == Self.ramSize)
  }

  @Test(arguments: [512, 511, 1 << 40, UInt64.max - 1] as [UInt64])
  func pageRunOutsideRAM_isRefused(first: UInt64) throws {
    var bytes = try snapshotBytes()
    // The first run's header follows the file header and the state; two pages from `first` on.
    let header = 32 + 2 * 40 + 100
    for index in 0..<8 { bytes[header + index] = UInt8(truncatingIfNeeded: first >> (8 * UInt64(index))) }
    #expect(throws: SnapshotError.self) { try read(bytes) }
  }

  @Test func otherMemorySize_isNamed() throws {
    let descriptor = try file(try snapshotBytes())
    defer { close(descriptor) }
    let memory = try GuestMemory(size: 4 << 20)
    #expect(throws: SnapshotError.memorySize(saved: Self.ramSize, machine: 4 << 20)) {
      try SnapshotFile.read(from: descriptor, into: memory)
    }
  }

  @Test func fullDisk_isAnErrorOfTheWrite() throws {
    let (memory, state) = try sample()
    let descriptor = unsafe open("/dev/full", O_RDWR)
    defer { close(descriptor) }
    #expect(throws: SnapshotError.write(errno: ENOSPC)) {
      try SnapshotFile.write(state: state, memory: memory, to: descriptor)
    }
  }
}
