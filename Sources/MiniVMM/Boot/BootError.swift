internal import CLinux

/// Why a kernel, an initrd or a command line was refused. Nothing has run when one of these is thrown.
public enum BootError: Error, Equatable, Sendable {
  public enum File: String, Sendable { case kernel, initrd }

  // Files
  case unreadable(File, errno: Int32)
  case empty(File)
  case kernelIsText
  case kernelIsCompressed(String)
  case unknownKernelFormat
  // ELF
  case notELF64ForX86
  case programHeaderSize(UInt16)
  case programHeadersOutsideFile(offset: UInt64, count: Int)
  case noLoadableSegment
  case segmentPastEndOfFile(segment: Int)
  case segmentFileSizeAboveMemorySize(segment: Int)
  case segmentOutsideRAM(address: UInt64, count: UInt64)
  case segmentOverlapsBootStructures(address: UInt64, count: UInt64)
  case segmentsOverlap(address: UInt64)
  case entryOutsideImage(UInt64)
  case noPVHNote
  // bzImage
  case bzImageTooShort
  case bzImageTooOld(version: UInt16)
  case bzImageNot64Bit
  case bzImageNeedsMoreRAM(end: UInt64)
  case protocolNotForBzImage
  // The rest
  case commandLineTooLong(bytes: Int, limit: Int)
  case commandLineHasNUL
  case initrdDoesNotFit(bytes: UInt64, room: UInt64)
  case outsideRAM(address: UInt64, count: UInt64)
}

extension BootError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .unreadable(let file, let error):
      "the \(file.rawValue) can't be read: \(unsafe String(cString: lx_strerror(error)))"
    case .empty(let file): "the \(file.rawValue) is an empty file"
    case .kernelIsText: "the kernel is a text file; a vmlinux (ELF), a bzImage or a PVH image is needed"
    case .kernelIsCompressed(let how):
      "the kernel is \(how) data; unpack it (a vmlinux), or use the bzImage it came from"
    case .unknownKernelFormat: "the kernel is neither ELF nor bzImage"
    case .notELF64ForX86: "the kernel is ELF, but not a 64-bit x86 executable (ET_EXEC or ET_DYN)"
    case .programHeaderSize(let size): "the kernel's program headers have \(size) bytes each, ELF64 has 56"
    case .programHeadersOutsideFile(let offset, let count):
      "the kernel's \(count) program headers at offset \(offset) are not inside the file"
    case .noLoadableSegment: "the kernel has no loadable segment"
    case .segmentPastEndOfFile(let segment): "segment \(segment) of the kernel goes past the end of the file"
    case .segmentFileSizeAboveMemorySize(let segment):
      "segment \(segment) of the kernel is larger in the file than in memory"
    case .segmentOutsideRAM(let address, let count):
      "the kernel wants \(count) bytes at \(hex(address)), which is not in guest RAM; give the guest more --memory"
    case .segmentOverlapsBootStructures(let address, let count):
      "the kernel wants \(count) bytes at \(hex(address)), where page tables, boot parameters or firmware tables lie; link it at 1 MiB or above"
    case .segmentsOverlap(let address): "two segments of the kernel overlap at \(hex(address))"
    case .entryOutsideImage(let address): "the kernel's entry point \(hex(address)) is not inside a segment"
    case .noPVHNote:
      "the kernel has no PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY); build it with CONFIG_PVH=y or use linux64"
    case .bzImageTooShort: "the bzImage ends inside its setup header or setup sectors"
    case .bzImageTooOld(let version):
      "the bzImage has boot protocol \(hex(UInt64(version))); 0x20c (Linux 3.8) is needed"
    case .bzImageNot64Bit: "the bzImage has no 64-bit entry point"
    case .bzImageNeedsMoreRAM(let end): "the bzImage unpacks up to \(hex(end)); give the guest more --memory"
    case .protocolNotForBzImage: "a bzImage is entered by the 64-bit Linux protocol, not by PVH"
    case .commandLineTooLong(let bytes, let limit): "the command line has \(bytes) bytes; this kernel takes \(limit)"
    case .commandLineHasNUL: "the command line contains a NUL byte"
    case .initrdDoesNotFit(let bytes, let room):
      "the initrd has \(bytes) bytes, \(room) are free beside the kernel; give the guest more --memory"
    case .outsideRAM(let address, let count): "\(count) bytes at \(hex(address)) are not in guest RAM"
    }
  }
}

func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
