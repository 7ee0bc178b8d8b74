/// The registers by which a guest and its replicating VMM speak: a window of 4 KiB at ``address``, whole 32-bit words.
@frozen public enum PairRegister {
  @inlinable public static var address: UInt64 { 0xc002_0000 }
  @inlinable public static var windowSize: UInt64 { 0x1000 }
  /// R: "MVPR"
  @inlinable public static var magic: UInt64 { 0x00 }
  @inlinable public static var magicValue: UInt32 { 0x5250_564d }
  /// R: 1
  @inlinable public static var version: UInt64 { 0x04 }
  /// R: what is offered (``PairFeature``); 0 for a guest that is not protected so.
  @inlinable public static var features: UInt64 { 0x08 }
  /// RW: which ring the next two are about, below ``SourceRing/count``.
  @inlinable public static var ringSelect: UInt64 { 0x10 }
  /// RW: the ring's guest-physical address. The high word takes effect; 0, or one that will not do, is no ring.
  @inlinable public static var ringLow: UInt64 { 0x18 }
  @inlinable public static var ringHigh: UInt64 { 0x1c }
  /// RW: the guest-physical address of ``PairControl``, a multiple of 8. The high word takes effect; 0 is none.
  @inlinable public static var controlLow: UInt64 { 0x20 }
  @inlinable public static var controlHigh: UInt64 { 0x24 }
  /// Rises when something in ``PairControl`` has changed: an input of the IOAPIC, edge-triggered.
  @inlinable public static var interrupt: UInt32 { 3 }
}

@frozen public enum PairFeature {
  /// The guest may say what its replies are made of (``SourceRecord``).
  @inlinable public static var sources: UInt32 { 1 << 0 }
  /// The guest may be asked to get by with fewer CPUs (``PairControl``).
  @inlinable public static var activeCPUs: UInt32 { 1 << 1 }
}

/// Words in the guest's memory, 4 bytes each, by which its VMM asks for something.
@frozen public enum PairControl {
  @inlinable public static var size: UInt64 { 8 }
  /// Written by the VMM: how many CPUs are to be active, the first of them; 0 for all. The others take no work, and stay in HLT.
  @inlinable public static var wanted: UInt64 { 0 }
  /// Written by the guest: how many are.
  @inlinable public static var active: UInt64 { 4 }
}

/// Memory of the guest in which it says what its replies are made of: records in a row, written over and over. It begins at a
/// multiple of 4096.
@frozen public enum SourceRing {
  /// Rings of a guest, one for each of its threads that answer.
  @inlinable public static var count: Int { 16 }
  @inlinable public static var records: UInt64 { 256 }
  @inlinable public static var size: UInt64 { records * SourceRecord.size }
}

/// One reply, or a part of one, on a TCP connection: where it lies in the stream, and the memory that determines it. What is
/// marked promises: *as long as these ranges hold these bytes, the answer is the same, and it confirms no write.*
@frozen public enum SourceRecord {
  @inlinable public static var size: UInt64 { 256 }
  @inlinable public static var mostSources: Int { 12 }

  /// 8 bytes, written last: the record's number, counted from 1. Record n lies at place (n - 1) mod ``SourceRing/records``.
  @inlinable public static var number: UInt64 { 0 }
  /// 4 bytes each: the sequence number of the first byte as the guest sends it, and how many bytes.
  @inlinable public static var sequence: UInt64 { 8 }
  @inlinable public static var length: UInt64 { 12 }
  /// 1 byte each: the IP version, and how many sources.
  @inlinable public static var version: UInt64 { 16 }
  @inlinable public static var sourceCount: UInt64 { 17 }
  /// 1 byte: ``ownBuffers`` or 0.
  @inlinable public static var flags: UInt64 { 18 }
  /// What the guest hands the card *is* the memory that determines the answer, such as pages of its file cache: no copies of it.
  @inlinable public static var ownBuffers: UInt8 { 1 }
  /// 2 bytes each: the guest's port, and the client's.
  @inlinable public static var localPort: UInt64 { 20 }
  @inlinable public static var remotePort: UInt64 { 22 }
  /// 16 bytes each, as two numbers, the high half first; an IPv4 address is the low 32 bits of the second.
  @inlinable public static var localAddress: UInt64 { 24 }
  @inlinable public static var remoteAddress: UInt64 { 40 }
  /// 16 bytes each: guest-physical address:8, bytes:4, offset in the reply:4.
  @inlinable public static var sources: UInt64 { 64 }
  /// The offset of a range that determines the answer and is not copied into it.
  @inlinable public static var notCopied: UInt32 { .max }
}
