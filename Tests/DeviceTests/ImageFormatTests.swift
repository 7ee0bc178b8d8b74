import CLinux
import Devices
import Glibc
import Testing

/// Images of other formats are not run as if they were raw.
@Suite("Family 17: disk images that are not raw") struct ImageFormatTests {
  struct Example: Sendable, CustomTestStringConvertible {
    let name: String
    let magic: [UInt8]
    /// In the file of 64 KiB; negative from its end.
    var offset = 0
    var cure = "qemu-img convert -O raw"
    var testDescription: String { "\(name) at \(offset)" }
  }

  static let examples = [
    Example(name: "qcow2", magic: [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3]),
    Example(name: "vhdx", magic: Array("vhdxfile".utf8)),
    Example(name: "vmdk", magic: Array("KDMV".utf8)),
    Example(name: "vmdk", magic: Array("COWD".utf8)),
    Example(name: "vmdk", magic: Array("# Disk DescriptorFile\nversion=1\n".utf8)),
    Example(name: "vpc", magic: Array("conectix".utf8)),
    Example(name: "vpc", magic: Array("conectix".utf8), offset: -512),
    Example(name: "vpc", magic: Array("conectix".utf8), offset: -511),
    Example(name: "vdi", magic: [0x7f, 0x10, 0xda, 0xbe], offset: 0x40),
    Example(name: "qed", magic: Array("QED\0".utf8)),
    Example(name: "parallels", magic: Array("WithoutFreeSpace".utf8)),
    Example(name: "parallels", magic: Array("WithouFreSpacExt".utf8)),
    Example(name: "gzip", magic: [0x1f, 0x8b, 8, 0], cure: "gzip -dc"),
    Example(name: "xz", magic: [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0], cure: "xz -dc"),
    Example(name: "zstd", magic: [0x28, 0xb5, 0x2f, 0xfd], cure: "zstd -dc"),
  ]

  /// A file with these bytes in it, and zeros.
  private func image(_ directory: TemporaryDirectory, _ bytes: [UInt8], at offset: Int, size: Int = 64 << 10) throws
    -> String
  {
    let path = directory.file("disk")
    let file = unsafe lx_open(path, O_CREAT | O_RDWR, 0o600)
    defer { lx_close(file) }
    try #require(lx_ftruncate(file, Int64(size)) == 0)
    let at = Int64(offset < 0 ? size + offset : offset)
    try #require(unsafe bytes.withUnsafeBytes { unsafe lx_pwrite(file, $0.baseAddress, $0.count, at) } == bytes.count)
    return path
  }

  @Test(arguments: examples, [false, true]) func otherFormat_isRefusedWithItsCure(example: Example, readOnly: Bool)
    throws
  {
    let directory = try TemporaryDirectory()
    let path = try image(directory, example.magic, at: example.offset)
    let error = try #require(throws: DiskError.self) { try DiskFile(path: path, readOnly: readOnly) }
    for text in [path, "a \(example.name) file", example.cure, ",format=raw"] {
      #expect("\(error)".contains(text), "\(error)")
    }
    // It may be what a guest has written to its raw disk.
    let disk = try DiskFile(path: path, readOnly: readOnly, isRaw: true)
    #expect(disk.capacity == 64 << 10)
  }

  /// The same bytes elsewhere are a disk's contents.
  @Test(arguments: examples) func bytesElsewhere_areContents(example: Example) throws {
    let directory = try TemporaryDirectory()
    let path = try image(directory, example.magic, at: 1024)
    #expect(throws: Never.self) { try DiskFile(path: path, readOnly: false) }
  }

  /// A boot sector, an ext4 superblock's place, LUKS: raw.
  @Test(
    arguments: [[0xeb, 0x63, 0x90], Array("LUKS\u{1}".utf8), [], Array("QE".utf8), Array("conecti".utf8)] as [[UInt8]])
  func raw_isTaken(bytes: [UInt8]) throws {
    let directory = try TemporaryDirectory()
    for size in [512, 513, 1023, 64 << 10] {
      let path = try image(directory, bytes, at: 0, size: size)
      #expect(throws: Never.self) { try DiskFile(path: path, readOnly: false) }
    }
  }
}
