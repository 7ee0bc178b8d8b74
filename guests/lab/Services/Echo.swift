import LabC

/// Port 7, UDP and TCP: what comes in goes out.
enum Echo {
  static let port: UInt16 = 7

  static func start() {
    // The reply is sent from the receive buffer itself.
    receiveDatagrams(
      on: port,
      { _, pcb, datagram, from, port in
        guard let datagram else { return }
        Interface.sendDatagram(pcb, datagram, from, port)
        pbuf_free(datagram)
      })
    listen(on: port) { _, pcb, error in
      guard let pcb, error == ok else { return err_t(ERR_VAL.rawValue) }
      return Echo.accept(pcb)
    }
  }
}

/// Binds a UDP port, IPv4 and IPv6.
func receiveDatagrams(on port: UInt16, _ receive: udp_recv_fn) {
  guard let pcb = udp_new_ip_type(UInt8(IPADDR_TYPE_ANY.rawValue)) else { return }
  withUnsafePointer(to: ip_addr_any_type) { _ = udp_bind(pcb, $0, port) }
  udp_recv(pcb, receive, nil)
}

/// Binds and listens on a TCP port, IPv4 and IPv6.
func listen(on port: UInt16, _ accept: tcp_accept_fn) {
  guard let pcb = tcp_new_ip_type(UInt8(IPADDR_TYPE_ANY.rawValue)) else { return }
  pcb_reuse_address(pcb)
  let bound = withUnsafePointer(to: ip_addr_any_type) { tcp_bind(pcb, $0, port) }
  guard bound == ok, let listener = tcp_listen_with_backlog(pcb, 255) else {
    Console.line("lab: cannot listen")
    return
  }
  tcp_accept(listener, accept)
}

/// Frees the first `n` bytes of a chain (at most its first pbuf) and returns the rest.
func dropFront(_ p: UnsafeMutablePointer<pbuf>, _ n: Int) -> UnsafeMutablePointer<pbuf>? {
  guard n == Int(p.pointee.len) else { return pbuf_free_header(p, UInt16(n)) }
  let rest = p.pointee.next
  if let rest { pbuf_ref(rest) }
  pbuf_free(p)
  return rest
}

/// A TCP connection of the echo service: received data that could not be sent yet.
private struct EchoConnection {
  var pcb: UnsafeMutablePointer<tcp_pcb>?
  var pending: UnsafeMutablePointer<pbuf>?
  /// The client has sent all: close when everything is sent back.
  var peerClosed: Bool
  /// Told when the connection is over.
  var ended: (@convention(c) () -> Void)?
}

extension Echo {
  private typealias Connection = UnsafeMutablePointer<EchoConnection>

  private static let limit = 128
  nonisolated(unsafe) private static var connections = Connection.unset

  /// Serves a connection, whoever opened it.
  static func accept(_ pcb: UnsafeMutablePointer<tcp_pcb>, ended: (@convention(c) () -> Void)? = nil) -> err_t {
    if connections.isUnset { connections = Arena.takeZeroed(EchoConnection.self, count: limit) }
    for i in 0..<limit where connections[i].pcb == nil {
      let c = connections + i
      c.initialize(to: EchoConnection(pcb: pcb, pending: nil, peerClosed: false, ended: ended))
      tcp_no_delay(pcb)
      tcp_arg(pcb, c)
      tcp_recv(pcb) { c, _, data, _ in Echo.received(c!.assumingMemoryBound(to: EchoConnection.self), data) }
      tcp_sent(pcb) { c, _, _ in Echo.pump(c!.assumingMemoryBound(to: EchoConnection.self)) }
      tcp_poll(pcb, { c, _ in Echo.pump(c!.assumingMemoryBound(to: EchoConnection.self)) }, 2)
      tcp_err(pcb) { c, _ in
        if let c { Echo.forget(c.assumingMemoryBound(to: EchoConnection.self)) }
      }
      return ok
    }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }

  private static func received(_ c: Connection, _ data: UnsafeMutablePointer<pbuf>?) -> err_t {
    if let data {
      if let pending = c.pointee.pending { pbuf_cat(pending, data) } else { c.pointee.pending = data }
    } else {
      c.pointee.peerClosed = true
    }
    return pump(c)
  }

  private static func pump(_ c: Connection) -> err_t {
    guard let pcb = c.pointee.pcb else { return ok }
    while let p = c.pointee.pending {
      let n = UInt16(min(UInt32(p.pointee.len), tcp_send_space(pcb)))
      if n == 0, p.pointee.len > 0 { break }
      if n > 0, tcp_write(pcb, p.pointee.payload, n, UInt8(TCP_WRITE_FLAG_COPY)) != ok { break }
      c.pointee.pending = dropFront(p, Int(n))
      tcp_recved(pcb, n)
    }
    tcp_output(pcb)
    guard c.pointee.peerClosed, c.pointee.pending == nil else { return ok }
    tcp_arg(pcb, nil)
    tcp_recv(pcb, nil)
    tcp_sent(pcb, nil)
    tcp_poll(pcb, nil, 0)
    tcp_err(pcb, nil)
    forget(c)
    if tcp_close(pcb) == ok { return ok }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }

  private static func forget(_ c: Connection) {
    if let pending = c.pointee.pending { pbuf_free(pending) }
    c.pointee.pending = nil
    c.pointee.pcb = nil
    c.pointee.ended?()
  }
}
