import Testing

@testable import Harness

@Suite("Void rounds") struct VoidRoundTests {
  private func result(_ failures: [String], diskStood: Double) -> RoundRunner.Result {
    RoundRunner.Result(report: nil, failures: failures, notes: [], kills: 0, seconds: 5, diskStood: diskStood)
  }

  private let late = ["journal client 8: no reply for 10 s", "minivmm did not end within 5.0 s: …ready"]

  @Test func lateness_isVoidOnlyWhileTheDiskStood() {
    #expect(result(late, diskStood: 14).isVoid)
    #expect(!result(late, diskStood: 0.3).isVoid)
    #expect(!result([], diskStood: 14).isVoid)
  }

  @Test(arguments: [
    "key 7: no order explains it", "TCP client 7: receive: Connection reset by peer",
    "the disks of a pair at rest differ", "split: both sides serve",
    "minivmm did not end within 5.0 s: …ready\nfailure TCP client 7: receive: Connection reset by peer",
  ]) func lossOrReset_isNeverVoid(failure: String) {
    #expect(!result([failure], diskStood: 14).isVoid)
    #expect(!result(late + [failure], diskStood: 14).isVoid)
  }

  @Test func witness_ofADiskThatWorks_endsAtOnce() throws {
    let folder = TestFolder()
    let witness = try DiskWitness(folder.url)
    #expect(witness.end() < 2)
  }
}
