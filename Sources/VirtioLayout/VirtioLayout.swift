/// Shapes and numbers of virtio 1.2 that host and guest share: this module is compiled into the VMM and, as source,
/// into the bare-metal lab guest (Embedded Swift), so it imports nothing and allocates nothing.

/// A split-ring descriptor, 16 bytes, little-endian (virtio 1.2 §2.7.5).
@frozen public struct VirtqueueDescriptor: BitwiseCopyable, Sendable {
  /// Guest-physical address of the buffer.
  public var address: UInt64
  /// Buffer length in bytes.
  public var length: UInt32
  public var flags: UInt16
  /// Index of the next descriptor; meaningful only with ``next`` in ``flags``.
  public var nextIndex: UInt16

  @inlinable public init(address: UInt64, length: UInt32, flags: UInt16, nextIndex: UInt16) {
    self.address = address
    self.length = length
    self.flags = flags
    self.nextIndex = nextIndex
  }

  /// The descriptor as its two little-endian 8-byte halves, each of which is read from shared memory at once.
  @inlinable public init(low: UInt64, high: UInt64) {
    address = low
    length = UInt32(truncatingIfNeeded: high)
    flags = UInt16(truncatingIfNeeded: high >> 32)
    nextIndex = UInt16(truncatingIfNeeded: high >> 48)
  }

  /// VIRTQ_DESC_F_NEXT
  @inlinable public static var next: UInt16 { 1 }
  /// VIRTQ_DESC_F_WRITE: the device writes this buffer.
  @inlinable public static var write: UInt16 { 2 }
  /// VIRTQ_DESC_F_INDIRECT
  @inlinable public static var indirect: UInt16 { 4 }
  @inlinable public static var size: UInt64 { 16 }
}

/// Byte offsets inside the three parts of a split virtqueue (virtio 1.2 §2.7).
@frozen public enum SplitRing {
  @inlinable public static var descriptorAlignment: UInt64 { 16 }
  @inlinable public static var availAlignment: UInt64 { 2 }
  @inlinable public static var usedAlignment: UInt64 { 4 }

  @inlinable public static func descriptorTableSize(_ queueSize: UInt16) -> UInt64 { 16 * UInt64(queueSize) }
  /// flags, idx, ring[size], used_event
  @inlinable public static func availSize(_ queueSize: UInt16) -> UInt64 { 6 + 2 * UInt64(queueSize) }
  /// flags, idx, ring[size] of 8 bytes, avail_event
  @inlinable public static func usedSize(_ queueSize: UInt16) -> UInt64 { 6 + 8 * UInt64(queueSize) }

  @inlinable public static var flagsOffset: UInt64 { 0 }
  @inlinable public static var indexOffset: UInt64 { 2 }
  @inlinable public static var ringOffset: UInt64 { 4 }
  /// Where the driver says at which used index it wants an interrupt (behind the avail ring).
  @inlinable public static func usedEventOffset(_ queueSize: UInt16) -> UInt64 { 4 + 2 * UInt64(queueSize) }
  /// Where the device says at which avail index it wants a notification (behind the used ring).
  @inlinable public static func availEventOffset(_ queueSize: UInt16) -> UInt64 { 4 + 8 * UInt64(queueSize) }

  /// VIRTQ_AVAIL_F_NO_INTERRUPT
  @inlinable public static var noInterrupt: UInt16 { 1 }
  /// VIRTQ_USED_F_NO_NOTIFY
  @inlinable public static var noNotify: UInt16 { 1 }

  /// Whether moving an index from `old` to `new` passes `event` (virtio 1.2 §2.7.7.1, vring_need_event).
  @inlinable public static func passes(event: UInt16, from old: UInt16, to new: UInt16) -> Bool {
    (new &- event &- 1) < (new &- old)
  }
}

/// virtio-mmio v2 register offsets (virtio 1.2 §4.2.2).
@frozen public enum MMIORegister {
  @inlinable public static var magicValue: UInt64 { 0x000 }
  @inlinable public static var version: UInt64 { 0x004 }
  @inlinable public static var deviceID: UInt64 { 0x008 }
  @inlinable public static var vendorID: UInt64 { 0x00c }
  @inlinable public static var deviceFeatures: UInt64 { 0x010 }
  @inlinable public static var deviceFeaturesSelect: UInt64 { 0x014 }
  @inlinable public static var driverFeatures: UInt64 { 0x020 }
  @inlinable public static var driverFeaturesSelect: UInt64 { 0x024 }
  @inlinable public static var queueSelect: UInt64 { 0x030 }
  @inlinable public static var queueSizeMax: UInt64 { 0x034 }
  @inlinable public static var queueSize: UInt64 { 0x038 }
  @inlinable public static var queueReady: UInt64 { 0x044 }
  @inlinable public static var queueNotify: UInt64 { 0x050 }
  @inlinable public static var interruptStatus: UInt64 { 0x060 }
  @inlinable public static var interruptACK: UInt64 { 0x064 }
  @inlinable public static var status: UInt64 { 0x070 }
  @inlinable public static var queueDescriptorLow: UInt64 { 0x080 }
  @inlinable public static var queueDescriptorHigh: UInt64 { 0x084 }
  @inlinable public static var queueDriverLow: UInt64 { 0x090 }
  @inlinable public static var queueDriverHigh: UInt64 { 0x094 }
  @inlinable public static var queueDeviceLow: UInt64 { 0x0a0 }
  @inlinable public static var queueDeviceHigh: UInt64 { 0x0a4 }
  @inlinable public static var configGeneration: UInt64 { 0x0fc }
  @inlinable public static var config: UInt64 { 0x100 }

  /// "virt", little-endian.
  @inlinable public static var magic: UInt32 { 0x7472_6976 }
  @inlinable public static var modernVersion: UInt32 { 2 }
  @inlinable public static var windowSize: UInt64 { 0x1000 }
  /// InterruptStatus bits.
  @inlinable public static var usedBufferInterrupt: UInt32 { 1 }
  @inlinable public static var configurationInterrupt: UInt32 { 2 }
}

/// Device status bits (virtio 1.2 §2.1).
@frozen public enum DeviceStatus {
  @inlinable public static var acknowledge: UInt32 { 1 }
  @inlinable public static var driver: UInt32 { 2 }
  @inlinable public static var driverOK: UInt32 { 4 }
  @inlinable public static var featuresOK: UInt32 { 8 }
  @inlinable public static var needsReset: UInt32 { 64 }
  @inlinable public static var failed: UInt32 { 128 }
}

/// Device IDs (virtio 1.2 §5).
@frozen public enum DeviceID {
  @inlinable public static var network: UInt32 { 1 }
  @inlinable public static var block: UInt32 { 2 }
  @inlinable public static var entropy: UInt32 { 4 }
}

/// Feature bits that do not depend on the device (virtio 1.2 §6).
@frozen public enum CommonFeature {
  @inlinable public static var indirectDescriptors: UInt64 { 1 << 28 }
  @inlinable public static var eventIndex: UInt64 { 1 << 29 }
  @inlinable public static var version1: UInt64 { 1 << 32 }
}

/// virtio-net (virtio 1.2 §5.1).
@frozen public enum NetFeature {
  @inlinable public static var checksum: UInt64 { 1 << 0 }
  @inlinable public static var guestChecksum: UInt64 { 1 << 1 }
  @inlinable public static var macAddress: UInt64 { 1 << 5 }
  @inlinable public static var guestTSO4: UInt64 { 1 << 7 }
  @inlinable public static var guestTSO6: UInt64 { 1 << 8 }
  @inlinable public static var hostTSO4: UInt64 { 1 << 11 }
  @inlinable public static var hostTSO6: UInt64 { 1 << 12 }
  @inlinable public static var mergeableBuffers: UInt64 { 1 << 15 }
}

/// The header before each frame, 12 bytes with VERSION_1 (virtio 1.2 §5.1.6).
@frozen public struct NetHeader: BitwiseCopyable, Sendable {
  public var flags: UInt8
  public var gsoType: UInt8
  public var headerLength: UInt16
  public var gsoSize: UInt16
  public var checksumStart: UInt16
  public var checksumOffset: UInt16
  public var bufferCount: UInt16

  @inlinable public init() {
    flags = 0
    gsoType = 0
    headerLength = 0
    gsoSize = 0
    checksumStart = 0
    checksumOffset = 0
    bufferCount = 0
  }

  @inlinable public static var size: Int { 12 }
  /// VIRTIO_NET_HDR_F_NEEDS_CSUM
  @inlinable public static var needsChecksum: UInt8 { 1 }
  /// VIRTIO_NET_HDR_F_DATA_VALID
  @inlinable public static var dataValid: UInt8 { 2 }
  @inlinable public static var gsoNone: UInt8 { 0 }
  @inlinable public static var gsoTCPv4: UInt8 { 1 }
  @inlinable public static var gsoTCPv6: UInt8 { 4 }
  /// VIRTIO_NET_HDR_GSO_ECN, a flag on the type.
  @inlinable public static var gsoECN: UInt8 { 0x80 }
}

/// virtio-blk (virtio 1.2 §5.2).
@frozen public enum BlockFeature {
  @inlinable public static var sizeMax: UInt64 { 1 << 1 }
  @inlinable public static var segmentMax: UInt64 { 1 << 2 }
  @inlinable public static var readOnly: UInt64 { 1 << 5 }
  @inlinable public static var blockSize: UInt64 { 1 << 6 }
  @inlinable public static var flush: UInt64 { 1 << 9 }
  @inlinable public static var discard: UInt64 { 1 << 13 }
  @inlinable public static var writeZeroes: UInt64 { 1 << 14 }
}

@frozen public enum BlockRequestType {
  @inlinable public static var read: UInt32 { 0 }
  @inlinable public static var write: UInt32 { 1 }
  @inlinable public static var flush: UInt32 { 4 }
  @inlinable public static var getID: UInt32 { 8 }
  @inlinable public static var discard: UInt32 { 11 }
  @inlinable public static var writeZeroes: UInt32 { 13 }
}

@frozen public enum BlockStatus {
  @inlinable public static var ok: UInt8 { 0 }
  @inlinable public static var ioError: UInt8 { 1 }
  @inlinable public static var unsupported: UInt8 { 2 }
}

/// The readable header of every block request, 16 bytes.
@frozen public struct BlockRequestHeader: BitwiseCopyable, Sendable {
  public var type: UInt32
  public var reserved: UInt32
  /// In units of 512 bytes, whatever the block size.
  public var sector: UInt64

  @inlinable public init(type: UInt32, sector: UInt64) {
    self.type = type
    reserved = 0
    self.sector = sector
  }

  @inlinable public static var size: Int { 16 }
  @inlinable public static var sectorSize: UInt64 { 512 }
  @inlinable public static var idLength: Int { 20 }
}

/// One range of a DISCARD or WRITE_ZEROES request, 16 bytes.
@frozen public struct BlockRangeSegment: BitwiseCopyable, Sendable {
  public var sector: UInt64
  public var sectorCount: UInt32
  public var flags: UInt32

  @inlinable public init(sector: UInt64, sectorCount: UInt32, flags: UInt32) {
    self.sector = sector
    self.sectorCount = sectorCount
    self.flags = flags
  }

  @inlinable public static var size: Int { 16 }
  /// WRITE_ZEROES only: the device may deallocate.
  @inlinable public static var unmap: UInt32 { 1 }
}
