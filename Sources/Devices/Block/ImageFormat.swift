/// A file that holds a disk in another way than byte for byte. A guest that got it as it is would see the format's own tables, and
/// destroy the image with its first write.
public struct ImageFormat: Equatable, Sendable {
  /// As `qemu-img` calls it, or the program that made the file smaller.
  public let name: String
  /// What makes a raw image of `path`.
  private let cure: Cure
  private enum Cure: Equatable { case convert, decompress(String) }

  /// - Parameters:
  ///   - first: the file's first ``probeSize`` bytes.
  ///   - last: its last ones.
  /// - Returns: nil for a raw image, as far as that can be told.
  init?(first: ArraySlice<UInt8>, last: ArraySlice<UInt8>) {
    for (format, offset, magic) in Self.known where first.dropFirst(offset).starts(with: magic) {
      self = format
      return
    }
    // A footer of 512 bytes, or of 511 in old files.
    let vhd = Array("conectix".utf8)
    guard last.starts(with: vhd) || last.dropFirst().starts(with: vhd) else { return nil }
    self = Self.image("vpc")
  }

  static let probeSize = 512

  private init(_ name: String, _ cure: Cure) { (self.name, self.cure) = (name, cure) }
  private static func image(_ name: String) -> ImageFormat { ImageFormat(name, .convert) }

  private static let known: [(format: ImageFormat, offset: Int, magic: [UInt8])] = [
    (image("qcow2"), 0, [0x51, 0x46, 0x49, 0xfb]),  // "QFI\xfb", of qcow as well
    (image("vhdx"), 0, Array("vhdxfile".utf8)),
    (image("vpc"), 0, Array("conectix".utf8)),  // a dynamic VHD begins with a copy of its footer
    (image("vmdk"), 0, Array("KDMV".utf8)),
    (image("vmdk"), 0, Array("COWD".utf8)),
    (image("vmdk"), 0, Array("# Disk DescriptorFile".utf8)),
    (image("vdi"), 0x40, [0x7f, 0x10, 0xda, 0xbe]),
    (image("qed"), 0, Array("QED\0".utf8)),
    (image("parallels"), 0, Array("WithoutFreeSpace".utf8)),
    (image("parallels"), 0, Array("WithouFreSpacExt".utf8)),
    (ImageFormat("gzip", .decompress("gzip -dc")), 0, [0x1f, 0x8b, 0x08]),
    (ImageFormat("xz", .decompress("xz -dc")), 0, [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]),
    (ImageFormat("zstd", .decompress("zstd -dc")), 0, [0x28, 0xb5, 0x2f, 0xfd]),
  ]

  func command(_ path: String) -> String {
    switch cure {
    case .convert: "qemu-img convert -O raw \(path) \(path).raw"
    case .decompress(let command): "\(command) \(path) > \(path).raw"
    }
  }
}
