import Foundation
import Harness
import Testing

extension Integration {
  /// `./test --campaign N --seed S` plays other rounds than these.
  @Suite(
    "Campaign", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(5)))
  struct Campaigns {
    @Test func twentyRandomRounds_clientsNoticeNothing() {
      #expect(Campaign().run() == [])
    }

    @Test func tenRandomRounds_withOutputThatLeavesEarly() {
      var campaign = Campaign()
      (campaign.rounds, campaign.seed, campaign.modes) = (10, 101, ["colo++"])
      #expect(campaign.run() == [])
    }

    @Test(.enabled(if: Environment.hasLinux, "needs the built Linux guest")) func twoRandomRounds_withRedisInLinux() {
      var campaign = Campaign()
      (campaign.rounds, campaign.guest) = (2, .linux)
      #expect(campaign.run() == [])
    }

    /// The oracle's own test: output that does not wait for the secondary is lost with the primary, and that must show.
    @Test func withoutOutputHeldBack_theLossIsSeen() throws {
      let folder = FileManager.default.temporaryDirectory.appending(path: "minivmm-campaign-none-\(getpid())")
      defer { try? FileManager.default.removeItem(at: folder) }
      var round = Round(seed: 1, modes: ["none"])
      round.blow = Blow(side: .primary, kind: .killAt("pagesSent=kill@9"), after: 0)
      (round.takeoverFault, round.second, round.cpus, round.dirties) = (nil, nil, 1, false)
      round.load = (connections: 8, pause: 1000)
      var runner = RoundRunner(round, folder: folder)
      let failures = runner.run().failures
      #expect(
        failures.contains { $0.contains("was acknowledged") || $0.contains("no order explains it") }, "\(failures)")
    }
  }
}
