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
  }
}
