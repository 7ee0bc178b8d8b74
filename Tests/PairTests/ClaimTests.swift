import Devices
import Glibc
import Harness
import MiniVMM
import Replication
import Testing

@testable import Pair

/// What a primary makes of a secondary that claims to have what it was never sent: believed, that would let everything out for good.
@Suite(
  "Claims of a secondary", .enabled(if: hasKVM, "needs /dev/kvm"), .timeLimit(.minutes(Environment.patience)),
  .serialized)
struct ClaimTests {
  @Test(arguments: [Message.received(epoch: 2), .received(epoch: .max), .inputAcknowledged(card: 0, count: 1)])
  func ofWhatWasNotSent_endTheChannel(claim: Message) throws {
    #expect(try checkpoints(after: claim) == 1)
  }

  @Test(arguments: [Message.received(epoch: 1), .inputAcknowledged(card: 0, count: 0)])
  func ofWhatWasSent_count(claim: Message) throws {
    #expect(try checkpoints(after: claim) > 1)
  }

  /// Makes a pair with a secondary that confirms the first checkpoint, by `claim` or behind it.
  /// - Returns: how many checkpoints the primary had sent when it gave the secondary up, or when three had come.
  private func checkpoints(after claim: Message) throws -> UInt64 {
    let machine = try ScriptedPrimary.haltedMachine()
    defer { machine.stop() }
    let primary = try PrimarySide(PrimarySide.Options(mode: .remus, period: 20_000_000), tap: nil)
    let (channel, mine) = try channels()
    let (listening, calling) = try beatPaths()
    listening.begin(mine)
    let protection = try HostThread.start(name: "protect") {
      _ = primary.protect(machine, backend: nil, disks: [], channel: channel, beats: calling)
    }
    let isOver = Shared(false)
    let sender = try HostThread.start(name: "send") { _ = mine.runSender() }
    let beats = try HostThread.start(name: "beats") {
      while !isOver.value, (try? mine.send(.heartbeat(term: 1, time: 0))) != nil {
        while case .beat = listening.receive() {}
        listening.send(.init(term: 1, hasLeft: false))
        HostThread.waitReadable(listening.descriptor, timeoutMilliseconds: 10)
      }
    }
    var newest: UInt64 = 0
    while newest < 3, let message = try? mine.receive(within: 2000) {
      guard case .checkpoint(let epoch, _, _, _, _, _, _, _, _) = message else { continue }
      newest = epoch
      if epoch == 1 { try mine.send(claim) }
      _ = try? mine.send(.received(epoch: epoch))
      _ = try? mine.send(.loaded(epoch: epoch, nanoseconds: 1))
    }
    isOver.value = true
    mine.close()
    for thread in [protection, sender, beats] { thread.join() }
    return newest
  }
}
