import Testing

@testable import Harness

@Suite("Void rounds") struct VoidRoundTests {
  private func result(_ failures: [String], hostStood: Double) -> RoundRunner.Result {
    RoundRunner.Result(report: nil, failures: failures, notes: [], kills: 0, seconds: 5, hostStood: hostStood)
  }

  private let late = [
    "journal client 8: no reply for 10 s", "minivmm did not end within 5.0 s: …ready",
    "the pair ended without a blow: …now alone: checkpoint 34 was not confirmed within 5 s",
  ]

  @Test func lateness_isVoidOnlyWhileTheHostStood() {
    #expect(result(late, hostStood: 14).isVoid)
    #expect(!result(late, hostStood: 0.3).isVoid)
    #expect(!result([], hostStood: 14).isVoid)
  }

  @Test(arguments: [
    "key 7: no order explains it", "TCP client 7: receive: Connection reset by peer",
    "the disks of a pair at rest differ", "split: both sides serve",
    "minivmm did not end within 5.0 s: …ready\nfailure TCP client 7: receive: Connection reset by peer",
  ]) func lossOrReset_isNeverVoid(failure: String) {
    #expect(!result([failure], hostStood: 14).isVoid)
    #expect(!result(late + [failure], hostStood: 14).isVoid)
  }

  @Test func witness_ofAHostThatWorks_endsAtOnce() throws {
    let folder = TestFolder()
    let witness = try HostWitness(folder.url)
    #expect(witness.end() < 2)
  }
}
