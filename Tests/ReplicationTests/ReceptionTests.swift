import CLinux
import Glibc
import Replication
import Testing

/// The real listener, and those who call at it.
@Suite("Reception", .timeLimit(.minutes(1))) struct ReceptionTests {
  private let listener = unsafe lx_tcp_listen("127.0.0.1:0")
  private var address: String { "127.0.0.1:\(lx_local_port(listener))" }

  private func call() -> CInt { unsafe lx_tcp_connect(address) }

  private func say(_ bytes: [UInt8], on descriptor: CInt) { _ = unsafe lx_send(descriptor, bytes, bytes.count) }

  /// Whether a peer with this key gets through to somebody who waits until it has, and what became of the others.
  private func join(_ key: SharedKey = ChannelTests.key, reception: Reception) -> (Bool, [ChannelError]) {
    var refused: [ChannelError] = []
    let (address, done) = (address, Flag())
    let peer = Body {
      let descriptor = unsafe lx_tcp_connect(address)
      let channel = try? Channel(descriptor: descriptor, side: .primary, key: key, timeout: 1500)
      done.value = channel != nil
      usleep(20_000)
    }
    let thread = peer.start()
    let channel = reception.next { refused.append($0) }
    lx_thread_join(thread)
    return (channel != nil && done.value, refused)
  }

  @Test func manySilentCallers_keepAPeerOutForNoTime() {
    let reception = Reception(listener: listener, key: ChannelTests.key, time: 60_000)
    let silent = (0..<Reception.limit * 2).map { _ in call() }
    let start = lx_monotonic_ns()
    let (joined, refused) = join(reception: reception)
    #expect(joined && lx_monotonic_ns() - start < 1_000_000_000)
    // Only as many as there was no room for: the oldest.
    #expect(refused.count <= Reception.limit + 1 && refused.allSatisfy { $0 == .timedOut })
    for descriptor in silent { close(descriptor) }
    close(listener)
  }

  @Test func garbage_otherVersions_andHangUps_areRefused_andAPeerJoins() {
    let reception = Reception(listener: listener, key: ChannelTests.key)
    let (garbage, old, gone, dripping) = (call(), call(), call(), call())
    say([UInt8](repeating: 0x20, count: 5000), on: garbage)
    say(Array("MVMMPAIR".utf8) + [3, 0, 0, 0] + [UInt8](repeating: 0, count: 32), on: old)
    close(gone)
    say(Array("MVMM".utf8), on: dripping)
    let (joined, refused) = join(reception: reception)
    #expect(joined)
    #expect(refused.contains(.notAuthentic) && refused.contains(.otherVersion(3)) && refused.contains(.closed))
    for descriptor in [garbage, old, dripping] { close(descriptor) }
    close(listener)
  }

  /// A proof that comes byte by byte is one all the same; one that does not come in time is none.
  @Test func slowCallers_haveTheirTime() {
    let reception = Reception(listener: listener, key: ChannelTests.key, time: 300)
    let silent = call()
    let start = lx_monotonic_ns()
    let listener = listener
    let ender = Body {
      usleep(600_000)
      _ = shutdown(listener, CInt(SHUT_RDWR))
    }.start()
    var refused: [ChannelError] = []
    #expect(reception.next { refused.append($0) } == nil)
    #expect(refused == [.timedOut] && lx_monotonic_ns() - start > 500_000_000)
    lx_thread_join(ender)
    close(silent)
    close(listener)
  }

  private final class Flag: @unchecked Sendable { var value = false }
}

/// A thread's work.
final class Body: Sendable {
  let run: @Sendable () -> Void
  init(_ run: @escaping @Sendable () -> Void) { self.run = run }

  func start() -> pthread_t {
    var thread = pthread_t()
    unsafe lx_thread_start(
      &thread,
      { @Sendable context in
        if let context = unsafe context { unsafe Unmanaged<Body>.fromOpaque(context).takeRetainedValue().run() }
        return nil
      }, Unmanaged.passRetained(self).toOpaque())
    return thread
  }
}
