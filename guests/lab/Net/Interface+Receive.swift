import LabC

/// From the device to lwIP.
extension Interface {
  private static let bufferSize = 2048
  /// Buffers of the longest frame lwIP can take: a pbuf's length has 16 bits.
  private static let mostParts = (0xffff + NetHeader.size + bufferSize - 1) / bufferSize
  private struct Part {
    var buffer: Int
    /// Bytes written to it.
    var count: Int
  }

  nonisolated(unsafe) private static var buffers = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var bufferPbufs = UnsafeMutablePointer<pbuf_custom>.unset
  /// Receive buffers that lwIP or a service holds.
  nonisolated(unsafe) private static var buffersOut = 0
  /// The buffers of the frame at hand, as far as they have come.
  nonisolated(unsafe) private static var parts = UnsafeMutablePointer<Part>.unset
  nonisolated(unsafe) private static var partCount = 0
  nonisolated(unsafe) private static var partsWanted = 1
  /// Frames of several segments, merged by the host.
  nonisolated(unsafe) static var mergedIn: UInt64 = 0

  static func setUpReceive() {
    buffers = Arena.take(bufferSize * Int(receive.size), alignment: 4096)
    bufferPbufs = Arena.takeZeroed(pbuf_custom.self, count: Int(receive.size))
    parts = Arena.takeZeroed(Part.self, count: mostParts)
    for i in 0..<Int(receive.size) {
      bufferPbufs[i].custom_free_function = { Interface.recycle($0) }
      offer(i)
    }
  }

  private static func offer(_ buffer: Int) {
    receive.append(address(buffers) + UInt64(buffer * bufferSize), UInt32(bufferSize), writable: true)
    receive.publish(token: UInt(buffer))
  }

  /// lwIP is done with the pbuf of a receive buffer.
  private static func recycle(_ pbuf: UnsafeMutablePointer<pbuf>?) {
    guard let pbuf else { return }
    let offset = UnsafeRawPointer(pbuf) - UnsafeRawPointer(bufferPbufs)
    offer(offset / MemoryLayout<pbuf_custom>.stride)
    buffersOut -= 1
  }

  /// Most that may be held: what is left to the device must do for the longest frame.
  private static var mostOut: Int { min(Int(receive.size) * 3 / 4, Int(receive.size) - mostParts) }

  static var isShortOfBuffers: Bool { buffersOut > mostOut - (has(NetFeature.mergeableBuffers) ? mostParts : 1) }

  /// True if there was anything.
  static func receiveFrames(budget: Int) -> Bool {
    var count = 0
    while count < budget, let (token, written) = receive.takeUsed() {
      count += 1
      gather(Int(token), min(Int(written), bufferSize))
    }
    return count > 0
  }

  private static func gather(_ buffer: Int, _ written: Int) {
    if partCount == 0 {
      let header = (buffers + buffer * bufferSize).load(as: NetHeader.self)
      partsWanted = has(NetFeature.mergeableBuffers) ? max(1, Int(header.bufferCount)) : 1
    }
    if partCount < mostParts {
      parts[partCount] = Part(buffer: buffer, count: written)
    } else {
      offer(buffer)  // longer than anything lwIP can take: swallowed to its end
    }
    partCount += 1
    guard partCount == partsWanted else { return }
    if !accept() {
      framesDropped += 1
      for i in 0..<min(partCount, mostParts) { offer(parts[i].buffer) }
    }
    partCount = 0
  }

  /// Hands a complete frame to lwIP. False: it was not taken, and its buffers are still ours.
  private static func accept() -> Bool {
    framesIn += 1
    guard partCount <= mostParts else { return false }
    var length = -NetHeader.size
    for i in 0..<partCount {
      guard parts[i].count > 0 else { return false }
      length += parts[i].count
    }
    guard parts[0].count >= NetHeader.size + 14, length <= 0xffff else { return false }
    trust((buffers + parts[0].buffer * bufferSize).load(as: NetHeader.self))
    let frame: UnsafeMutablePointer<pbuf>
    if buffersOut + partCount <= mostOut {
      guard let chained = chain() else { return false }
      frame = chained
    } else {
      // Much is held back already (unread data, holes in streams): copy, so that reception never starves.
      guard let copied = copy(length) else { return false }
      frame = copied
      for i in 0..<partCount { offer(parts[i].buffer) }
    }
    if ethernet_input(frame, netif) != ok { pbuf_free(frame) }
    return true
  }

  /// A frame the device vouches for (or that never was on a wire) needs no checking; others do.
  private static func trust(_ header: NetHeader) {
    if header.gsoType != NetHeader.gsoNone { mergedIn += 1 }
    if has(NetFeature.guestChecksum), header.flags & (NetHeader.needsChecksum | NetHeader.dataValid) != 0 {
      netif.pointee.chksum_flags &= ~netif_checksums_check_transport()
    } else {
      netif.pointee.chksum_flags |= netif_checksums_check_transport()
    }
  }

  /// One pbuf a buffer, chained from the last to the first: each step then looks at one pbuf only.
  private static func chain() -> UnsafeMutablePointer<pbuf>? {
    var rest: UnsafeMutablePointer<pbuf>?
    for i in (0..<partCount).reversed() {
      let (buffer, count) = (parts[i].buffer, parts[i].count)
      let skip = i == 0 ? NetHeader.size : 0
      let start = buffers + buffer * bufferSize + skip
      // Cannot fail: the pbuf is there already and the length is within the buffer.
      guard
        let p = pbuf_alloced_custom(
          PBUF_RAW, UInt16(count - skip), PBUF_REF, bufferPbufs + buffer, start, UInt16(bufferSize - skip))
      else { return nil }
      if let rest { pbuf_cat(p, rest) }
      rest = p
    }
    buffersOut += partCount
    return rest
  }

  private static func copy(_ length: Int) -> UnsafeMutablePointer<pbuf>? {
    guard lwip_memory_free() > Reserve.forReceiving, let p = pbuf_alloc(PBUF_RAW, UInt16(length), PBUF_RAM),
      var end = p.pointee.payload
    else { return nil }
    for i in 0..<partCount {
      let skip = i == 0 ? NetHeader.size : 0
      _ = memcpy(end, buffers + parts[i].buffer * bufferSize + skip, parts[i].count - skip)
      end += parts[i].count - skip
    }
    return p
  }
}
