internal import CLinux
internal import Glibc

/// Shakes hands with all that connect to a listener, at the same time: one that is slow, or no peer at all, keeps nobody out.
///
/// Who connects while ``limit`` handshakes are going on takes the place of the oldest: a peer needs a moment, others keep theirs
/// for as long as they may. One thread.
public final class Reception {
  /// Handshakes at a time.
  public static let limit = 32

  /// A connection that has proved nothing yet.
  private struct Caller {
    let descriptor: CInt
    let handshake: Handshake
    let deadline: UInt64
  }

  private let listener: CInt
  private let key: SharedKey
  private let time: UInt64
  private var callers: [Caller] = []

  /// - Parameters:
  ///   - listener: a listening socket, which stays the caller's.
  ///   - time: milliseconds that a handshake may take.
  public init(listener: CInt, key: SharedKey, time: UInt64 = Channel.handshakeTime) {
    lx_set_nonblocking(listener, 1)
    (self.listener, self.key, self.time) = (listener, key, time * 1_000_000)
  }

  deinit { for caller in callers { lx_close(caller.descriptor) } }

  /// Milliseconds after which it looks again what to watch besides.
  private static let look: CInt = 500

  /// Waits for the next that has the key; nil once the listener has been shut down.
  /// - Parameters:
  ///   - refused: told of each that has not.
  ///   - watched: another descriptor to be watched now, or -1.
  ///   - ready: called when that is readable.
  public func next(
    refused: (ChannelError) -> Void, watching watched: () -> CInt = { -1 }, ready: () -> Void = {}
  ) -> Channel? {
    while true {
      let now = lx_monotonic_ns()
      for caller in callers where now >= caller.deadline { end(caller, .timedOut, refused) }
      // Whoever is first in the queue of the kernel is taken in after those who are here have been heard.
      if let channel = hear(refused) { return channel }
      var entries = ([listener, watched()] + callers.map(\.descriptor)).map {
        pollfd(fd: $0, events: Int16(POLLIN), revents: 0)
      }
      let left = callers.map { $0.deadline - min(now, $0.deadline) }.min()
      _ = unsafe poll(
        &entries, nfds_t(entries.count), min(left.map { CInt($0 / 1_000_000) + 1 } ?? Self.look, Self.look))
      if entries[1].revents != 0 { ready() }
      guard entries[0].revents != 0 else { continue }
      let descriptor = lx_tcp_accept(listener)
      if descriptor == -EINVAL { return nil }
      guard descriptor >= 0 else {
        // Such as no descriptor left: the connection waits, and would be reported at once.
        if descriptor != -EAGAIN, descriptor != -EINTR { usleep(10_000) }
        continue
      }
      if callers.count == Self.limit, let oldest = callers.first { end(oldest, .timedOut, refused) }
      do throws(ChannelError) {
        let handshake = try Handshake(descriptor, .secondary, key)
        callers.append(Caller(descriptor: descriptor, handshake: handshake, deadline: lx_monotonic_ns() + time))
      } catch {
        lx_close(descriptor)
        refused(error)
      }
    }
  }

  /// Takes in what all have said: the first who has proved that it knows the key.
  private func hear(_ refused: (ChannelError) -> Void) -> Channel? {
    for caller in callers {
      let keys: Channel.Keys
      do throws(ChannelError) {
        guard let proved = try caller.handshake.proceed() else { continue }
        keys = proved
      } catch {
        end(caller, error, refused)
        continue
      }
      callers.removeAll { $0.descriptor == caller.descriptor }
      // It owns the socket from here on.
      do throws(ChannelError) { return try Channel(descriptor: caller.descriptor, keys: keys) } catch { refused(error) }
    }
    return nil
  }

  private func end(_ caller: Caller, _ why: ChannelError, _ refused: (ChannelError) -> Void) {
    callers.removeAll { $0.descriptor == caller.descriptor }
    lx_close(caller.descriptor)
    refused(why)
  }
}
