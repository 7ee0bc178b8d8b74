import LabC

/// Malformed frames and starved receive rings.
enum NetCases {
  private static let next = VirtqueueDescriptor.next
  private static let write = VirtqueueDescriptor.write

  private static func frame(_ header: NetHeader, length: UInt32) {
    _ = memset(physical(Victim.scratch), 0, 4096)
    physical(Victim.scratch).storeBytes(of: header, as: NetHeader.self)
    _ = memset(physical(Victim.scratch + 12), 0xff, 6)
    physical(Victim.scratch + 24).storeBytes(of: 0x0008, as: UInt16.self)
    Victim.descriptor(0, Victim.scratch, length, 0)
    Victim.submit(0)
  }

  /// Offload fields that make no sense: offsets behind the frame, unknown types, segments of no size.
  static func badOffload() {
    let words: InlineArray<5, UInt16> = [0, 1, 60, 0x7fff, 0xffff]
    for flags in UInt8(0)..<4 {
      for a in 0..<5 {
        for b in 0..<5 {
          var header = NetHeader()
          header.flags = flags
          header.gsoType = UInt8(truncatingIfNeeded: Hostile.random.next())
          header.headerLength = words[(a + b) % 5]
          header.gsoSize = words[(a * 2 + b) % 5]
          header.checksumStart = words[a]
          header.checksumOffset = words[b]
          header.bufferCount = words[a]
          frame(header, length: 12 + 60)
        }
      }
    }
  }

  static func missingHeader() {
    for length in UInt32(0)..<13 { frame(NetHeader(), length: length) }
  }

  /// 64 KiB and more, in one piece and in many.
  static func hugeFrame() {
    frame(NetHeader(), length: 65536 + 12)
    frame(NetHeader(), length: 1 << 20)
    for i in UInt16(0)..<128 { Victim.descriptor(i, Victim.scratch, 8192, i < 127 ? next : 0, next: i + 1) }
    Victim.submit(0)
  }

  // MARK: Receive

  private static func offerReceive(_ address: UInt64, _ length: UInt32, _ flags: UInt16) {
    guard Victim.transport.negotiate(NetFeature.mergeableBuffers) != nil else { return }
    Victim.setUpQueue(0, Victim.descriptors)
    Victim.transport.start()
    for i in UInt16(0)..<16 {
      Victim.descriptor(i, address, length, flags)
      Victim.avail.storeBytes(of: i, toByteOffset: 4 + 2 * Int(i), as: UInt16.self)
    }
    store16(Victim.avail + 2, 16)
    Victim.notify(0)
    Processors.pause(microseconds: 20_000)  // frames may come in meanwhile
  }

  static func shortReceiveBuffers() {
    offerReceive(Victim.scratch, 0, write)
    offerReceive(Victim.scratch, 1, write)
    offerReceive(Victim.scratch, 11, write)
    offerReceive(Victim.scratch, 13, write)
    offerReceive(Victim.scratch, 2048, 0)  // not writable
    offerReceive(Victim.endOfRAM, 2048, write)
    offerReceive(UInt64.max - 100, 2048, write)
  }

  /// No buffers at all for a while, then many.
  static func receiveStarvation() {
    Victim.bringUp()
    Processors.pause(microseconds: 200_000)
    offerReceive(Victim.scratch, 2048, write)
  }
}
