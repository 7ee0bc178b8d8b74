import LabC

/// How much of lwIP's memory, in percent, must be free for what: large values stop first, small replies last.
enum Reserve {
  static let forLargeValues = 40
  static let forReceiving = 15
  static let forReplies = 5
}

/// virtio-net as an lwIP interface. Nothing is copied: frames are sent from lwIP's pbufs and from wherever those point
/// to, and received frames are handed to lwIP in the receive buffers.
enum Interface {
  private static let queueSize: UInt16 = 256
  private static let bufferSize = 2048
  private static let backlogSize = 1024

  nonisolated(unsafe) private(set) static var isUp = false
  nonisolated(unsafe) private static var transport = Transport(base: 0, irq: 0)
  nonisolated(unsafe) private static var receive = SplitQueue()
  nonisolated(unsafe) private static var transmit = SplitQueue()
  nonisolated(unsafe) private static var netif = UnsafeMutablePointer<netif>.unset
  nonisolated(unsafe) private static var checksumOffload = false
  nonisolated(unsafe) private static var guestChecksumOffload = false

  nonisolated(unsafe) private static var buffers = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var bufferPbufs = UnsafeMutablePointer<pbuf_custom>.unset
  /// Receive buffers that lwIP or a service holds.
  nonisolated(unsafe) private static var buffersOut = 0
  /// One header a transmit descriptor, used by the chain that begins there.
  nonisolated(unsafe) private static var headers = UnsafeMutableRawPointer.unset
  /// Frames that found the transmit queue full.
  nonisolated(unsafe) private static var backlog = UnsafeMutablePointer<UnsafeMutablePointer<pbuf>?>.unset
  nonisolated(unsafe) private static var backlogHead = 0
  nonisolated(unsafe) private static var backlogCount = 0

  nonisolated(unsafe) static var framesIn: UInt64 = 0
  nonisolated(unsafe) static var framesOut: UInt64 = 0
  nonisolated(unsafe) static var framesDropped: UInt64 = 0
  nonisolated(unsafe) private static var framesDone: UInt64 = 0

  // MARK: Set-up

  /// False if there is no network device.
  static func setUp() -> Bool {
    guard let found = Discovery.find(DeviceID.network) else { return false }
    transport = found
    var wanted = CommonFeature.eventIndex | NetFeature.macAddress
    if !CommandLine.isOff("csum") { wanted |= NetFeature.checksum | NetFeature.guestChecksum }
    if CommandLine.isOff("event_idx") { wanted &= ~CommonFeature.eventIndex }
    guard let features = transport.negotiate(wanted) else { return false }
    let eventIndex = features & CommonFeature.eventIndex != 0
    guard let first = transport.makeQueue(0, size: queueSize, eventIndex: eventIndex),
      let second = transport.makeQueue(1, size: queueSize, eventIndex: eventIndex)
    else { return false }
    receive = first
    transmit = second
    checksumOffload = features & NetFeature.checksum != 0
    guestChecksumOffload = features & NetFeature.guestChecksum != 0

    buffers = Arena.take(bufferSize * Int(receive.size), alignment: 4096)
    bufferPbufs = Arena.takeZeroed(pbuf_custom.self, count: Int(receive.size))
    headers = Arena.takeZeroed(16 * Int(transmit.size))
    backlog = Arena.takeZeroed(UnsafeMutablePointer<pbuf>?.self, count: backlogSize)
    for i in 0..<Int(receive.size) {
      bufferPbufs[i].custom_free_function = { Interface.recycle($0) }
      offer(i)
    }
    transport.start()
    receive.notifyIfNeeded()
    Interrupts.route(irq: transport.irq)
    addToStack(features)
    isUp = true
    return true
  }

  private static func addToStack(_ features: UInt64) {
    set_lwip_heap(Arena.take(lwip_heap_size(), alignment: 4096).assumingMemoryBound(to: UInt8.self))
    lwip_init()
    netif = Arena.takeZeroed(LabC.netif.self, count: 1)
    var ip = ip4_addr_t(addr: 0)
    var mask = ip4_addr_t(addr: 0)
    var gateway = ip4_addr_t(addr: 0)
    if var option = CommandLine.value("ip") {
      ip.addr = parseAddress(option.next(separator: 0x2f)) ?? 0
      let bits = option.decimal() ?? 24
      mask.addr = bits == 0 ? 0 : (~UInt32(0) << UInt32(32 - min(bits, 32))).byteSwapped
    }
    gateway.addr = parseAddress(CommandLine.value("gw")) ?? 0
    netif_add(netif, &ip, &mask, &gateway, nil, { Interface.initialise($0) }, { ethernet_input($0, $1) })
    for i in 0..<6 {
      let byte = features & NetFeature.macAddress != 0 ? transport.configuration8(UInt64(i)) : fallbackMAC[i]
      withUnsafeMutableBytes(of: &netif.pointee.hwaddr) { $0[i] = byte }
    }
    netif_set_checksums(
      netif, checksumOffload ? netif_checksums_generate_ip_only() : netif_checksums_all())
    netif_set_default(netif)
    netif_set_link_up(netif)
    netif_set_up(netif)
    addIPv6Addresses()
  }

  /// Link-local from the MAC address; `ip6=` has a /64, the one prefix length lwIP knows for addresses set by hand.
  private static func addIPv6Addresses() {
    netif_create_ip6_linklocal_address(netif, 1)
    guard let option = CommandLine.value("ip6") else { return }
    // The text goes on to a blank, a slash or the command line's end; each of them ends the address.
    var ip6 = ip6_addr_t()
    var rest = option
    _ = rest.next(separator: 0x2f)
    var slot: Int8 = 0
    guard option.count > 0, rest.isEmpty || rest.equals("64"), ip6addr_aton(option.start, &ip6) == 1,
      netif_add_ip6_address(netif, &ip6, &slot) == ok
    else {
      Console.line("lab: ip6= wants ADDRESS/64")
      return
    }
    netif_ip6_addr_set_state(netif, slot, UInt8(IP6_ADDR_PREFERRED))
  }

  private static let fallbackMAC: InlineArray<6, UInt8> = [0x02, 0, 0, 0, 0, 0x02]

  private static func initialise(_ netif: UnsafeMutablePointer<netif>?) -> err_t {
    guard let netif else { return err_t(ERR_ARG.rawValue) }
    netif.pointee.name = (0x65, 0x6e)  // "en"
    netif.pointee.mtu = 1500
    netif.pointee.hwaddr_len = 6
    netif.pointee.flags = UInt8(NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET)
    netif.pointee.output = { etharp_output($0, $1, $2) }
    netif.pointee.output_ip6 = { ethip6_output($0, $1, $2) }
    netif.pointee.linkoutput = { Interface.send($1) }
    return ok
  }

  static func parseAddress(_ text: Bytes?) -> UInt32? {
    guard var rest = text else { return nil }
    var address: UInt32 = 0
    for i in 0..<4 {
      guard let part = rest.next(separator: 0x2e)?.decimal(), part < 256 else { return nil }
      address |= UInt32(part) << UInt32(8 * i)
    }
    return address
  }

  // MARK: Receive

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

  static var isShortOfBuffers: Bool { buffersOut >= Int(receive.size) * 3 / 4 }

  /// Takes up to `budget` frames and what the device has sent. True if there was anything.
  static func poll(budget: Int) -> Bool {
    let sent = reapTransmitted()
    var count = 0
    while count < budget, let (token, written) = receive.takeUsed() {
      count += 1
      accept(Int(token), Int(written))
    }
    return sent || count > 0
  }

  private static func accept(_ buffer: Int, _ written: Int) {
    framesIn += 1
    let start = buffers + buffer * bufferSize
    let length = written - NetHeader.size
    guard length >= 14, length <= bufferSize - NetHeader.size else {
      offer(buffer)
      return
    }
    // A frame the device vouches for (or that never was on a wire) needs no checking; others do.
    let flags = start.load(as: UInt8.self)
    let vouched = guestChecksumOffload && flags & (NetHeader.needsChecksum | NetHeader.dataValid) != 0
    if vouched {
      netif.pointee.chksum_flags &= ~netif_checksums_check_transport()
    } else {
      netif.pointee.chksum_flags |= netif_checksums_check_transport()
    }
    let frame = start + NetHeader.size
    let pbuf: UnsafeMutablePointer<pbuf>?
    if !isShortOfBuffers {
      buffersOut += 1
      pbuf = pbuf_alloced_custom(
        PBUF_RAW, UInt16(length), PBUF_REF, bufferPbufs + buffer, frame, UInt16(bufferSize - NetHeader.size))
    } else {
      // Much is held back already (unread data, holes in streams): copy, so that reception never starves.
      pbuf = lwip_memory_free() > Reserve.forReceiving ? pbuf_alloc(PBUF_RAW, UInt16(length), PBUF_RAM) : nil
      if let pbuf { _ = memcpy(pbuf.pointee.payload, frame, length) } else { framesDropped += 1 }
      offer(buffer)
    }
    guard let pbuf else { return }
    if ethernet_input(pbuf, netif) != ok { pbuf_free(pbuf) }
  }

  // MARK: Transmit

  /// lwIP's linkoutput: keeps a reference on the pbuf until the device has sent it.
  private static func send(_ frame: UnsafeMutablePointer<pbuf>?) -> err_t {
    guard let frame, pbuf_clen(frame) < transmit.size / 2 else { return err_t(ERR_ARG.rawValue) }
    if backlogCount == 0, enqueue(frame) {
      pbuf_ref(frame)
      return ok
    }
    guard backlogCount < backlogSize else {
      framesDropped += 1
      return err_t(ERR_MEM.rawValue)
    }
    pbuf_ref(frame)
    backlog[(backlogHead + backlogCount) % backlogSize] = frame
    backlogCount += 1
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

  private static func enqueue(_ frame: UnsafeMutablePointer<pbuf>) -> Bool {
    let pieces = pbuf_clen(frame)
    if transmit.freeCount < pieces + 1 { _ = reapTransmitted() }
    guard transmit.freeCount >= pieces + 1 else { return false }
    let header = headers + Int(transmit.nextDescriptor) * 16
    fillHeader(header, frame)
    transmit.append(address(header), UInt32(NetHeader.size), writable: false)
    var piece: UnsafeMutablePointer<pbuf>? = frame
    while let p = piece {
      if p.pointee.len > 0 {
        transmit.append(address(p.pointee.payload), UInt32(p.pointee.len), writable: false)
      }
      piece = p.pointee.next
    }
    transmit.publish(token: UInt(bitPattern: frame))
    framesOut += 1
    return true
  }

  /// The virtio header; with checksum offload also the pseudo-header's sum in the TCP or UDP checksum field.
  private static func fillHeader(_ header: UnsafeMutableRawPointer, _ frame: UnsafeMutablePointer<pbuf>) {
    var fields = NetHeader()
    let packet = UnsafeMutableRawPointer(frame.pointee.payload).unsafelyUnwrapped
    if checksumOffload, let place = TransportChecksum(packet, Int(frame.pointee.len)) {
      packet.storeBytes(of: place.pseudoHeaderSum, toByteOffset: place.start + place.offset, as: UInt16.self)
      fields.flags = NetHeader.needsChecksum
      fields.checksumStart = UInt16(place.start)
      fields.checksumOffset = UInt16(place.offset)
    }
    header.storeBytes(of: fields, as: NetHeader.self)
  }

  private static func reapTransmitted() -> Bool {
    var any = false
    while let (token, _) = transmit.takeUsed() {
      any = true
      framesDone += 1
      if let frame = UnsafeMutablePointer<pbuf>(bitPattern: token) { pbuf_free(frame) }
    }
    while any, backlogCount > 0, let frame = backlog[backlogHead], transmit.freeCount > pbuf_clen(frame) {
      backlogHead = (backlogHead + 1) % backlogSize
      backlogCount -= 1
      _ = enqueue(frame)
    }
    return any
  }

  /// A stamp for everything handed to lwIP so far…
  static var transmitStamp: UInt64 { framesOut + UInt64(backlogCount) }
  /// …and whether the device is done with all of it, so that memory it was sent from may be used again.
  static func isTransmitted(_ stamp: UInt64) -> Bool { framesDone >= stamp }

  /// At the end of a round: one notification for all that was queued in it.
  static func flush() {
    transmit.notifyIfNeeded()
    receive.notifyIfNeeded()
  }

  // MARK: Sleeping

  /// Asks for interrupts. False if there is something to do right away.
  static func arm() -> Bool {
    let nothingReceived = receive.arm()
    let nothingSent = backlogCount == 0 || transmit.arm()
    return nothingReceived && nothingSent
  }

  static func disarm() {
    let received = receive.disarm()
    let sent = transmit.disarm()
    if received || sent { transport.acknowledgeInterrupt() }
  }
}

let ok = err_t(ERR_OK.rawValue)
