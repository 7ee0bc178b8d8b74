import LabC

/// Port 7, UDP and TCP: what comes in goes out.
enum Echo {
  static let port: UInt16 = 7

  static func start() {
    let udp = udp_new()
    _ = udp_bind(udp, nil, port)
    // The reply is sent from the receive buffer itself.
    udp_recv(udp, { _, pcb, datagram, from, port in
      guard let datagram else { return }
      _ = udp_sendto(pcb, datagram, from, port)
      pbuf_free(datagram)
    }, nil)
    listen(on: port) { _, pcb, error in
      guard let pcb, error == ok else { return err_t(ERR_VAL.rawValue) }
      return EchoConnection.accept(pcb)
    }
  }
}

/// Binds and listens on a TCP port.
func listen(on port: UInt16, _ accept: tcp_accept_fn) {
  guard let pcb = tcp_new() else { return }
  pcb_reuse_address(pcb)
  guard tcp_bind(pcb, nil, port) == ok, let listener = tcp_listen_with_backlog(pcb, 255) else {
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

/// A TCP connection of the echo service. Its state is the received data that could not be sent yet, a pbuf chain, which
/// is the connection's argument in lwIP.
private enum EchoConnection {
  static func accept(_ pcb: UnsafeMutablePointer<tcp_pcb>) -> err_t {
    tcp_no_delay(pcb)
    tcp_arg(pcb, nil)
    tcp_recv(pcb) { pending, pcb, data, error in
      guard let pcb else { return ok }
      guard let data, error == ok else { return EchoConnection.end(pcb, pending) }
      let chain: UnsafeMutablePointer<pbuf>
      if let pending {
        chain = pending.assumingMemoryBound(to: pbuf.self)
        pbuf_cat(chain, data)
      } else {
        chain = data
      }
      EchoConnection.pump(pcb, chain)
      return ok
    }
    tcp_sent(pcb) { pending, pcb, _ in
      if let pcb, let pending { EchoConnection.pump(pcb, pending.assumingMemoryBound(to: pbuf.self)) }
      return ok
    }
    tcp_err(pcb) { pending, _ in
      if let pending { pbuf_free(pending.assumingMemoryBound(to: pbuf.self)) }
    }
    tcp_poll(pcb, { pending, pcb in
      if let pcb, let pending { EchoConnection.pump(pcb, pending.assumingMemoryBound(to: pbuf.self)) }
      return ok
    }, 2)
    return ok
  }

  private static func pump(_ pcb: UnsafeMutablePointer<tcp_pcb>, _ chain: UnsafeMutablePointer<pbuf>) {
    var rest: UnsafeMutablePointer<pbuf>? = chain
    while let p = rest {
      let n = UInt16(min(UInt32(p.pointee.len), tcp_send_space(pcb)))
      if n == 0, p.pointee.len > 0 { break }
      if n > 0, tcp_write(pcb, p.pointee.payload, n, UInt8(TCP_WRITE_FLAG_COPY)) != ok { break }
      rest = dropFront(p, Int(n))
      tcp_recved(pcb, n)
    }
    tcp_arg(pcb, rest)
    tcp_output(pcb)
  }

  /// The client has sent all: send what is left, then close.
  private static func end(_ pcb: UnsafeMutablePointer<tcp_pcb>, _ pending: UnsafeMutableRawPointer?) -> err_t {
    if let pending {
      let chain = pending.assumingMemoryBound(to: pbuf.self)
      pump(pcb, chain)
    }
    if let left = pcb.pointee.callback_arg {
      pbuf_free(left.assumingMemoryBound(to: pbuf.self))
    }
    tcp_arg(pcb, nil)
    tcp_recv(pcb, nil)
    tcp_sent(pcb, nil)
    tcp_poll(pcb, nil, 0)
    tcp_err(pcb, nil)
    if tcp_close(pcb) == ok { return ok }
    tcp_abort(pcb)
    return err_t(ERR_ABRT.rawValue)
  }
}
