import Foundation
import Harness
import Testing

extension Integration {
  /// `./test --campaign N --seed S` plays other rounds than these.
  @Suite(
    "Campaign", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(6 * Environment.patience)))
  struct Campaigns {
    private let folder = TestFolder()

    @Test func twentyRandomRounds_clientsNoticeNothing() {
      #expect(Campaign().run() == [])
    }

    @Test func tenRandomRounds_withOutputThatLeavesEarly() {
      var campaign = Campaign()
      (campaign.rounds, campaign.seed, campaign.modes) = (10, 101, ["colo++"])
      #expect(campaign.run() == [])
    }

    /// In each phase of a checkpoint either side dies: the one that is there, or the other one meanwhile.
    static let deaths = [Blow.Side.primary, .secondary].flatMap { side in
      (side == .primary ? Round.primaryPoints : Round.secondaryPoints).flatMap { point -> [Blow] in
        let other = side == .primary ? Blow.Side.secondary : .primary
        let place = point.hasPrefix("disk") ? 40 : 5
        // Before the first checkpoint nobody can take over.
        guard point != "joining" else { return [Blow(side: side, kind: .killAt("joining=kill"), after: 0)] }
        return [
          Blow(side: side, kind: .killAt("\(point)=kill@\(place)"), after: 0),
          Blow(side: other, kind: .killWhilePeerAt("\(point)=delay:200@\(place)"), after: 0),
        ]
      }
    }

    @Test(arguments: deaths) func eitherSideDies_atEachPoint(death: Blow) {
      var round = Round(seed: 1, modes: ["colo"])
      round.blow = death
      (round.takeoverFault, round.others, round.cpus, round.dirties) = (nil, [], 1, false)
      round.load = (connections: 6, pause: 5000)
      var runner = RoundRunner(round, folder: folder.url)
      let result = runner.run()
      #expect(result.failures == [] && result.notes == [])
    }

    @Test(.enabled(if: Environment.hasLinux, "needs the built Linux guest")) func twoRandomRounds_withRedisInLinux() {
      var campaign = Campaign()
      (campaign.rounds, campaign.guest) = (2, .linux)
      #expect(campaign.run() == [])
    }

    /// The oracle's own test: output that does not wait for the secondary is lost with the primary, and that must show.
    @Test func withoutOutputHeldBack_theLossIsSeen() throws {
      var round = Round(seed: 1, modes: ["none"])
      round.blow = Blow(side: .primary, kind: .killAt("pagesSent=kill@9"), after: 0)
      (round.takeoverFault, round.others, round.cpus, round.dirties) = (nil, [], 1, false)
      round.load = (connections: 8, pause: 1000)
      var runner = RoundRunner(round, folder: folder.url)
      let failures = runner.run().failures
      #expect(
        failures.contains { $0.contains("was acknowledged") || $0.contains("no order explains it") }, "\(failures)")
    }
  }
}
