import LabC

/// How much of lwIP's memory, in percent, must be free for what: large values stop first, small replies last.
enum Reserve {
  static let forLargeValues = 40
  static let forReceiving = 15
  static let forReplies = 5
}

/// virtio-net as an lwIP interface. Nothing is copied: frames are sent from lwIP's pbufs and from wherever those point
/// to, and received frames are handed to lwIP in the receive buffers. Set-up and sleeping; the two directions have files
/// of their own.
enum Interface {
  private static let queueSize: UInt16 = 256

  nonisolated(unsafe) private(set) static var isUp = false
  nonisolated(unsafe) private static var transport = Transport(base: 0, irq: 0)
  nonisolated(unsafe) static var receive = SplitQueue()
  nonisolated(unsafe) static var transmit = SplitQueue()
  nonisolated(unsafe) static var netif = UnsafeMutablePointer<netif>.unset
  /// What the device and we agreed on.
  nonisolated(unsafe) private static var features: UInt64 = 0

  nonisolated(unsafe) static var framesIn: UInt64 = 0
  nonisolated(unsafe) static var framesOut: UInt64 = 0
  nonisolated(unsafe) static var framesDropped: UInt64 = 0

  static func has(_ feature: UInt64) -> Bool { features & feature != 0 }

  // MARK: Set-up

  /// False if there is no network device.
  static func setUp() -> Bool {
    guard let found = Discovery.find(DeviceID.network) else { return false }
    transport = found
    guard negotiate() else { return false }
    let eventIndex = has(CommonFeature.eventIndex)
    guard let first = transport.makeQueue(0, size: queueSize, eventIndex: eventIndex),
      let second = transport.makeQueue(1, size: queueSize, eventIndex: eventIndex)
    else { return false }
    receive = first
    transmit = second
    setUpReceive()
    setUpTransmit()
    transport.start()
    receive.notifyIfNeeded()
    Interrupts.route(irq: transport.irq)
    addToStack()
    isUp = true
    return true
  }

  private static func negotiate() -> Bool {
    let segments = NetFeature.guestTSO4 | NetFeature.guestTSO6
    var wanted = CommonFeature.eventIndex | NetFeature.macAddress
    if !CommandLine.isOff("csum") {
      wanted |= NetFeature.checksum | NetFeature.guestChecksum
      if !CommandLine.isOff("tso") {
        wanted |= segments | NetFeature.hostTSO4 | NetFeature.hostTSO6 | NetFeature.mergeableBuffers
      }
    }
    if CommandLine.isOff("event_idx") { wanted &= ~CommonFeature.eventIndex }
    guard var agreed = transport.negotiate(wanted) else { return false }
    // No receive buffer of ours holds 64 KiB: merged segments need merged buffers.
    if agreed & segments != 0, agreed & NetFeature.mergeableBuffers == 0 {
      guard let fewer = transport.negotiate(wanted & ~segments) else { return false }
      agreed = fewer
    }
    features = agreed
    return true
  }

  nonisolated(unsafe) private static var sequencesByClock = false
  nonisolated(unsafe) private static var lastSequence: UInt32 = 6510

  /// Where the numbers of the next TCP connection begin: as lwIP has it, which is the same in two guests that do the same within
  /// half a second; with `isn=clock` by a clock of 4 µs (RFC 6528), as most systems do.
  static func initialSequence(ticks: UInt32) -> UInt32 {
    lastSequence &+= ticks
    return sequencesByClock ? UInt32(truncatingIfNeeded: Clock.now / 4000) : lastSequence
  }

  private static func addToStack() {
    sequencesByClock = CommandLine.value("isn")?.equals("clock") ?? false
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
      var byte = has(NetFeature.macAddress) ? transport.configuration8(UInt64(i)) : fallbackMAC[i]
      // As a guest whose owner has set another than the card's.
      if let own = CommandLine.number("mac") { byte = UInt8(truncatingIfNeeded: own >> UInt64(8 * (5 - i))) }
      withUnsafeMutableBytes(of: &netif.pointee.hwaddr) { $0[i] = byte }
    }
    netif_set_checksums(
      netif, has(NetFeature.checksum) ? netif_checksums_generate_ip_only() : netif_checksums_all())
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

  // MARK: A round

  /// Takes up to `budget` receive buffers and what the device has sent. True if there was anything.
  static func poll(budget: Int) -> Bool {
    let sent = reap()
    if sent { drain() }
    return receiveFrames(budget: budget) || sent
  }

  /// At the end of a round: one notification for all that was queued in it.
  static func flush() {
    drain()
    transmit.notifyIfNeeded()
    receive.notifyIfNeeded()
  }

  // MARK: Sleeping

  /// Asks for interrupts. False if there is something to do right away.
  static func arm() -> Bool {
    let nothingReceived = receive.arm()
    let nothingSent = !isSendingBlocked || transmit.arm()
    return nothingReceived && nothingSent
  }

  static func disarm() {
    let received = receive.disarm()
    let sent = transmit.disarm()
    if received || sent { transport.acknowledgeInterrupt() }
  }
}

let ok = err_t(ERR_OK.rawValue)

@c(initial_sequence)
func initialSequence(_ ticks: UInt32) -> UInt32 { Interface.initialSequence(ticks: ticks) }
