import CLinux
import Devices
import Glibc
import GuestMemory
import Testing
import VirtioLayout

/// A block device on a file of its own, and requests to it.
///
/// Request `slot` has its header at 1 MiB + slot × 16 KiB, its status byte 0x100 further, its data at 0x1000.
final class TestDisk {
  let directory = try? TemporaryDirectory()
  let path: String
  let device: BlockDevice
  static func header(_ slot: UInt64) -> UInt64 { TestDriver.buffers + slot * 0x4000 }
  static func status(_ slot: UInt64) -> UInt64 { header(slot) + 0x100 }
  static func data(_ slot: UInt64) -> UInt64 { header(slot) + 0x1000 }

  /// - Parameter path: where to make the image; in a temporary directory when nil.
  init(sectors: UInt64, readOnly: Bool = false, sparse: Bool = false, path: String? = nil, extraBytes: Int = 0) throws {
    self.path = path ?? (directory?.file("disk") ?? "")
    let fd = unsafe lx_open(self.path, O_RDWR | O_CREAT | O_TRUNC, 0o600)
    guard fd >= 0 else { throw HostError(operation: "open", errno: -fd) }
    defer { lx_close(fd) }
    if sparse {
      guard lx_ftruncate(fd, Int64(sectors * 512)) == 0 else { throw HostError(operation: "truncate", errno: 0) }
    } else {
      // Every sector's bytes name the sector.
      let bytes = (0..<Int(sectors * 512) + extraBytes).map { TestDisk.pattern($0) }
      _ = unsafe bytes.withUnsafeBytes { unsafe lx_pwrite(fd, $0.baseAddress, $0.count, 0) }
    }
    device = try BlockDevice(disk: DiskFile(path: self.path, readOnly: readOnly), serial: "test-disk", workerCount: 2)
    try device.start()
  }

  static func pattern(_ offset: Int) -> UInt8 { UInt8(truncatingIfNeeded: offset / 512 &* 31 &+ offset) }
  static func pattern(sector: UInt64, count: Int) -> [UInt8] { (0..<count).map { pattern(Int(sector) * 512 + $0) } }

  /// The image's bytes as the host sees them.
  func contents(_ offset: Int, _ count: Int) -> [UInt8] {
    let fd = unsafe lx_open(path, O_RDONLY, 0)
    defer { lx_close(fd) }
    var bytes = [UInt8](repeating: 0, count: count)
    let got = unsafe bytes.withUnsafeMutableBytes { unsafe lx_pread(fd, $0.baseAddress, $0.count, Int64(offset)) }
    return Array(bytes.prefix(max(got, 0)))
  }

  /// Offers a request with `count` data bytes in the direction its type has; the status byte starts as 0xEE.
  @discardableResult
  func add(
    _ driver: TestDriver, _ type: UInt32, sector: UInt64, count: UInt32 = 0, slot: UInt64 = 0
  ) -> UInt16? {
    driver.poke(BlockRequestHeader(type: type, sector: sector), at: Self.header(slot))
    driver.poke(0xee as UInt8, at: Self.status(slot))
    var buffers = [Buffer.readable(Self.header(slot), 16)]
    if count != 0 {
      let isRead = type == BlockRequestType.read || type == BlockRequestType.getID
      buffers.append(isRead ? .writable(Self.data(slot), count) : .readable(Self.data(slot), count))
    }
    buffers.append(.writable(Self.status(slot), 1))
    return driver.add(0, buffers)
  }

  /// Does one request and returns its status byte; nil when it did not come back.
  func run(
    _ driver: TestDriver, _ type: UInt32, sector: UInt64, count: UInt32 = 0,
    sourceLocation: SourceLocation = #_sourceLocation
  ) -> UInt8? {
    let head = add(driver, type, sector: sector, count: count)
    driver.write(MMIORegister.queueNotify, 0)
    let used = driver.collect(1)
    #expect(used.map(\.head) == [head ?? 0xffff], sourceLocation: sourceLocation)
    return used.isEmpty ? nil : driver.peek(at: Self.status(0))
  }
}
