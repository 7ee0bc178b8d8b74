import LabC

/// From lwIP to the device. Frames queue up first, so that what leaves in a row can leave together: the segments of one
/// TCP connection go as one frame that the host cuts up, if it ever has to.
extension Interface {
  private static let backlogSize = 1024
  /// Longest Ethernet, IP and TCP header that is put together here.
  private static let mostHeader = 116
  private static let headerStride = 128
  /// Frames of one chain, below 64: with the descriptor they make the chain's token.
  private static let mostMerged = 48
  private static let ownersStride = 64

  /// Frames not yet given to the device, a ring.
  nonisolated(unsafe) private static var backlog = UnsafeMutablePointer<UnsafeMutablePointer<pbuf>?>.unset
  nonisolated(unsafe) private static var backlogHead = 0
  nonisolated(unsafe) private static var backlogCount = 0
  /// For each transmit descriptor, used by the chain that begins there: headers, and the frames to be freed afterwards.
  nonisolated(unsafe) private static var headers = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var owners = UnsafeMutablePointer<UnsafeMutablePointer<pbuf>?>.unset
  nonisolated(unsafe) private static var framesDone: UInt64 = 0
  /// Chains of several segments.
  nonisolated(unsafe) static var mergedOut: UInt64 = 0

  static func setUpTransmit() {
    headers = Arena.takeZeroed(headerStride * Int(transmit.size))
    owners = Arena.takeZeroed(UnsafeMutablePointer<pbuf>?.self, count: ownersStride * Int(transmit.size))
    backlog = Arena.takeZeroed(UnsafeMutablePointer<pbuf>?.self, count: backlogSize)
  }

  /// lwIP's linkoutput: keeps a reference on the pbuf until the device has sent it.
  static func send(_ frame: UnsafeMutablePointer<pbuf>?) -> err_t {
    guard let frame, pbuf_clen(frame) < transmit.size / 2 else { return err_t(ERR_ARG.rawValue) }
    if backlogCount == backlogSize { drain() }
    guard backlogCount < backlogSize else {
      framesDropped += 1
      return err_t(ERR_MEM.rawValue)
    }
    pbuf_ref(frame)
    backlog[(backlogHead + backlogCount) % backlogSize] = frame
    backlogCount += 1
    // A segment that more may follow waits for them, at most to the end of the round.
    if backlogCount < mostMerged, let segment = segmentToMerge(frame), segment.isOpen { return ok }
    drain()
    return ok
  }

  /// A UDP datagram for lwIP to send. One that leaves in fragments needs its checksum from lwIP.
  static func sendDatagram(
    _ pcb: UnsafeMutablePointer<udp_pcb>?, _ p: UnsafeMutablePointer<pbuf>, _ to: UnsafePointer<ip_addr_t>?,
    _ port: UInt16
  ) {
    let flags = netif.pointee.chksum_flags
    if p.pointee.tot_len > netif.pointee.mtu - 48 { netif.pointee.chksum_flags |= netif_checksums_generate_datagram() }
    _ = udp_sendto(pcb, p, to, port)
    netif.pointee.chksum_flags = flags
  }

  static var isSendingBlocked: Bool { backlogCount > 0 }

  // MARK: Chains

  /// Gives the device what waits, as far as its queue has room.
  static func drain() {
    while backlogCount > 0, let frame = backlog[backlogHead] {
      let needed = pbuf_clen(frame) + 1
      if transmit.freeCount < needed { _ = reap() }
      guard transmit.freeCount >= needed else { return }
      let slot = Int(transmit.nextDescriptor)
      let count: Int
      if let first = segmentToMerge(frame), isFollowed(first, frame) {
        count = appendMerged(first, slot)
        mergedOut += 1
      } else {
        appendSingle(frame, slot)
        count = 1
      }
      transmit.publish(token: UInt(slot << 6 | count))
      framesOut += UInt64(count)
    }
  }

  /// The frame at the backlog's head goes over to the chain of `slot`.
  private static func own(_ frame: UnsafeMutablePointer<pbuf>, _ slot: Int, _ place: Int) {
    owners[slot * ownersStride + place] = frame
    backlogHead = (backlogHead + 1) % backlogSize
    backlogCount -= 1
  }

  private static func appendSingle(_ frame: UnsafeMutablePointer<pbuf>, _ slot: Int) {
    let header = headers + slot * headerStride
    var fields = NetHeader()
    let packet = UnsafeMutableRawPointer(frame.pointee.payload).unsafelyUnwrapped
    if has(NetFeature.checksum), let transport = TransportHeader(packet, Int(frame.pointee.len)) {
      fillChecksum(packet, transport, Int(frame.pointee.tot_len), &fields)
    }
    header.storeBytes(of: fields, as: NetHeader.self)
    transmit.append(address(header), UInt32(NetHeader.size), writable: false)
    var pieces = Pieces()
    pieces.add(frame, skipping: 0)
    pieces.flush()
    own(frame, slot, 0)
  }

  /// The checksum is the device's work: it finds the pseudo-header's sum in the field.
  private static func fillChecksum(
    _ packet: UnsafeMutableRawPointer, _ transport: TransportHeader, _ frameLength: Int, _ fields: inout NetHeader
  ) {
    let sum = transport.pseudoHeaderSum(packet, frameLength - transport.start)
    packet.storeBytes(of: sum, toByteOffset: transport.start + transport.checksumOffset, as: UInt16.self)
    fields.flags = NetHeader.needsChecksum
    fields.checksumStart = UInt16(transport.start)
    fields.checksumOffset = UInt16(transport.checksumOffset)
  }

  // MARK: Several segments as one frame

  private static func segmentToMerge(_ frame: UnsafeMutablePointer<pbuf>) -> Segment? {
    guard frame.pointee.tot_len > 600, let segment = Segment(frame), segment.headerLength <= mostHeader,
      has(segment.transport.isIPv6 ? NetFeature.hostTSO6 : NetFeature.hostTSO4)
    else { return nil }
    return segment
  }

  /// Whether the second frame of the backlog goes on where the first ends, and there is room for both.
  private static func isFollowed(_ first: Segment, _ frame: UnsafeMutablePointer<pbuf>) -> Bool {
    guard backlogCount > 1, let following = backlog[(backlogHead + 1) % backlogSize] else { return false }
    return transmit.freeCount > pbuf_clen(frame) + pbuf_clen(following) + 2
      && follower(of: first, following, first.dataLength) != nil
  }

  /// The frame as a segment, if it may come behind `last` in a chain of segments with `most` bytes of data each.
  private static func follower(of last: Segment, _ frame: UnsafeMutablePointer<pbuf>, _ most: Int) -> Segment? {
    guard last.dataLength == most, let segment = Segment(frame), segment.dataLength <= most, segment.follows(last)
    else { return nil }
    return segment
  }

  /// Builds a chain of the first segments of the backlog; returns how many. Headers are put together in our own memory:
  /// those in lwIP's pbufs must stay as they are for a retransmission.
  private static func appendMerged(_ first: Segment, _ slot: Int) -> Int {
    let header = headers + slot * headerStride
    let packet = header + NetHeader.size
    _ = memcpy(packet, first.packet, first.headerLength)
    transmit.append(address(header), UInt32(NetHeader.size + first.headerLength), writable: false)
    var pieces = Pieces()
    var length = first.headerLength
    var last = first
    var next: Segment? = first
    var count = 0
    while let segment = next, let frame = backlog[backlogHead] {
      pieces.add(frame, skipping: first.headerLength)
      own(frame, slot, count)
      count += 1
      length += segment.dataLength
      last = segment
      next = nil
      if count < mostMerged, backlogCount > 0, let following = backlog[backlogHead],
        transmit.freeCount > pbuf_clen(following) + 1, length + first.dataLength <= 0xffff
      {
        next = follower(of: segment, following, first.dataLength)
      }
    }
    pieces.flush()
    finish(packet, first, last, length)
    var fields = NetHeader()
    fillChecksum(packet, first.transport, length, &fields)
    fields.gsoType = first.transport.isIPv6 ? NetHeader.gsoTCPv6 : NetHeader.gsoTCPv4
    fields.gsoSize = UInt16(first.dataLength)
    fields.headerLength = UInt16(first.headerLength)
    header.storeBytes(of: fields, as: NetHeader.self)
    return count
  }

  /// Lengths and flags of the whole.
  private static func finish(_ packet: UnsafeMutableRawPointer, _ first: Segment, _ last: Segment, _ length: Int) {
    packet.storeBytes(of: last.flags, toByteOffset: first.transport.start + 13, as: UInt8.self)
    if first.transport.isIPv6 {
      packet.storeBytes(of: UInt16(length - 54).byteSwapped, toByteOffset: 18, as: UInt16.self)
    } else {
      packet.storeBytes(of: UInt16(length - 14).byteSwapped, toByteOffset: 16, as: UInt16.self)
      packet.storeBytes(of: 0, toByteOffset: 24, as: UInt16.self)
      let sum = inet_chksum(packet + 14, UInt16(first.transport.start - 14))
      packet.storeBytes(of: sum, toByteOffset: 24, as: UInt16.self)
    }
  }

  /// Pieces of memory on their way into a chain; what lies together goes as one.
  private struct Pieces {
    private var start: UInt64 = 0
    private var count = 0

    mutating func add(_ frame: UnsafeMutablePointer<pbuf>, skipping header: Int) {
      var skip = header
      var piece: UnsafeMutablePointer<pbuf>? = frame
      while let p = piece {
        let length = Int(p.pointee.len) - skip
        if length > 0 {
          let from = address(p.pointee.payload) + UInt64(skip)
          if start + UInt64(count) != from {
            flush()
            start = from
          }
          count += length
        }
        skip = 0
        piece = p.pointee.next
      }
    }

    mutating func flush() {
      if count > 0 { Interface.transmit.append(start, UInt32(count), writable: false) }
      count = 0
    }
  }

  // MARK: Afterwards

  /// Frees what the device has sent. True if there was any.
  static func reap() -> Bool {
    var any = false
    while let (token, _) = transmit.takeUsed() {
      any = true
      let (slot, count) = (Int(token) >> 6, Int(token) & 63)
      framesDone += UInt64(count)
      for i in 0..<count {
        if let frame = owners[slot * ownersStride + i] { pbuf_free(frame) }
      }
    }
    return any
  }

  /// A stamp for everything handed to lwIP so far…
  static var transmitStamp: UInt64 { framesOut + UInt64(backlogCount) }
  /// …and whether the device is done with all of it, so that memory it was sent from may be used again.
  static func isTransmitted(_ stamp: UInt64) -> Bool { framesDone >= stamp }
}
