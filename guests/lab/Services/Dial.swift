import LabC

/// `dial=ADDRESS:PORT`: a TCP connection that the guest opens, and on which what comes in goes out. Until somebody listens there,
/// and when the connection has ended, it tries again.
enum Dial {
  /// Milliseconds between two attempts.
  private static let pause: UInt32 = 200
  nonisolated(unsafe) private static var address = ip_addr_t()
  nonisolated(unsafe) private static var port: UInt16 = 0

  static func start() {
    guard var peer = CommandLine.value("dial"), let host = Interface.parseAddress(peer.next(separator: 0x3a)),
      let number = peer.next(separator: 0x3a)?.decimal(), number > 0, number < 65536
    else {
      Console.line("lab: dial wants dial=ADDRESS:PORT")
      return
    }
    address = ip_addr_v4(host)
    port = UInt16(number)
    connect()
  }

  private static func connect() {
    guard let pcb = tcp_new_ip_type(UInt8(IPADDR_TYPE_V4.rawValue)) else { return later() }
    // Before there is a connection, and after it: both end here.
    tcp_err(pcb) { _, _ in Dial.later() }
    let result = withUnsafePointer(to: address) {
      tcp_connect(pcb, $0, port) { _, pcb, _ in
        guard let pcb else { return ok }
        return Echo.accept(pcb, ended: { Dial.later() })
      }
    }
    if result != ok { tcp_abort(pcb) }
  }

  private static func later() { sys_timeout(pause, { _ in Dial.connect() }, nil) }
}
