import Replication
import Testing

@Suite("Failure detector") struct FailureDetectorTests {
  private static let millisecond: UInt64 = 1_000_000

  /// A peer that is heard for a minute, every `gap`, and twice in it only after `widest`; in nanoseconds.
  private func regular(gap: UInt64, widest: UInt64? = nil) -> (FailureDetector, UInt64) {
    var detector = FailureDetector(paths: 2, now: 0)
    var now: UInt64 = 0
    let turns = 2 * FailureDetector.window / gap
    for turn in 0..<turns + 4 {
      now += turn % (turns / 2) == turns / 4 ? widest ?? gap : gap
      detector.arrived(path: 0, now: now)
      detector.arrived(path: 1, now: now)
    }
    return (detector, now)
  }

  @Test func steadyPeer_isDeadAfterTheShortestTime() {
    let (detector, now) = regular(gap: 10 * Self.millisecond)
    #expect(!detector.isDead(now: now + 60 * Self.millisecond))
    #expect(detector.isDead(now: now + 61 * Self.millisecond))
  }

  /// A host that takes a CPU away for tens of milliseconds, and seldom: the peer that lives must not be replaced.
  @Test func wideGap_isRemembered_thoughManyNarrowOnesCameSince() {
    let (detector, now) = regular(gap: 10 * Self.millisecond, widest: 30 * Self.millisecond)
    #expect(!detector.isDead(now: now + 90 * Self.millisecond))
    #expect(detector.isDead(now: now + 91 * Self.millisecond))
  }

  @Test func wideGap_isForgottenAfterTwoWindows() {
    var (detector, now) = regular(gap: 10 * Self.millisecond, widest: 90 * Self.millisecond)
    #expect(!detector.isDead(now: now + 100 * Self.millisecond))
    #expect(detector.isDead(now: now + 101 * Self.millisecond))
    for _ in 0..<2 * FailureDetector.window / (10 * Self.millisecond) + 4 {
      now += 10 * Self.millisecond
      detector.arrived(path: 0, now: now)
      detector.arrived(path: 1, now: now)
    }
    #expect(detector.isDead(now: now + 61 * Self.millisecond))
  }

  /// Nothing is known of its jitter yet.
  @Test func newPeer_isGivenTheLongest() {
    var detector = FailureDetector(paths: 1, now: 0)
    for beat in 1...10 as ClosedRange<UInt64> { detector.arrived(path: 0, now: beat * 10 * Self.millisecond) }
    #expect(!detector.isDead(now: 200 * Self.millisecond))
    #expect(detector.isDead(now: 201 * Self.millisecond))
  }

  @Test func onePathAlive_isAlive() {
    var (detector, now) = regular(gap: 10 * Self.millisecond)
    for _ in 0..<100 {
      now += 10 * Self.millisecond
      detector.arrived(path: 1, now: now)
      #expect(!detector.isDead(now: now))
    }
    #expect(detector.isDead(now: now + 200 * Self.millisecond))
  }

  /// Who was stopped himself must read what has come meanwhile before he judges.
  @Test func ownAbsence_isNotThePeersDeath() {
    var (detector, now) = regular(gap: 10 * Self.millisecond)
    now += 5000 * Self.millisecond
    #expect(detector.isDead(now: now))
    detector.wasAway(until: now)
    #expect(!detector.isDead(now: now + 10 * Self.millisecond))
    #expect(detector.isDead(now: now + 101 * Self.millisecond))
  }

  /// A refusal can be anybody's: what comes afterwards counts. And what has never come is known as such.
  @Test func endedPath_livesAgainWithTheNextSign() {
    var detector = FailureDetector(paths: 2, now: 0)
    #expect(!detector.isHeard(path: 0) && !detector.isHeard(path: 1))
    detector.ended(path: 1)
    detector.arrived(path: 1, now: 10 * Self.millisecond)
    detector.ended(path: 0)
    #expect(!detector.isHeard(path: 0) && detector.isHeard(path: 1))
    #expect(!detector.isDead(now: 11 * Self.millisecond))
    detector.ended(path: 1)
    #expect(detector.isDead(now: 11 * Self.millisecond))
  }

  @Test func unknownPath_andTimeGoingBack_areHarmless() {
    var detector = FailureDetector(paths: 1, now: 50 * Self.millisecond)
    detector.arrived(path: 7, now: 60 * Self.millisecond)
    detector.arrived(path: 0, now: 10 * Self.millisecond)
    #expect(!detector.isDead(now: 51 * Self.millisecond))
  }
}

@Suite("Roles") struct RoleTests {
  @Test func primarysLife() {
    var roles = RoleMachine(role: .alone)
    #expect(roles.handle(.secondaryConnected)?.to == .syncing)
    #expect(roles.handle(.firstCheckpoint)?.to == .primary)
    let lost = roles.handle(.peerLost)
    #expect(lost?.from == .primary && lost?.to == .alone && lost?.cause == .peerLost)
    #expect(roles.term == 1, "who goes on alone has not taken over")
    #expect(roles.handle(.secondaryConnected)?.to == .syncing)
  }

  @Test func secondarysLife() {
    var roles = RoleMachine(role: .joining)
    #expect(roles.handle(.peerLost) == nil, "without a whole checkpoint there is nothing to take over with")
    #expect(roles.handle(.failoverDemanded) == nil)
    #expect(roles.handle(.firstCheckpoint)?.to == .secondary)
    #expect(roles.handle(.peerLost)?.to == .takingOver)
    #expect(roles.term == 2)
    #expect(roles.handle(.peerLost) == nil)
    #expect(roles.handle(.takeoverDone)?.to == .alone)
  }

  /// Given up by a primary that goes on: two must not serve.
  @Test(arguments: [Role.joining, .secondary]) func dismissed_neverTakesOver(role: Role) {
    var roles = RoleMachine(role: role)
    #expect(roles.handle(.peerSaidFarewell)?.to == .fenced)
    #expect(roles.handle(.peerLost) == nil && roles.handle(.failoverDemanded) == nil)
    #expect(!roles.mayEmit)
  }

  @Test(arguments: [Role.syncing, .primary, .alone, .takingOver]) func replaced_isFencedForGood(role: Role) {
    var roles = RoleMachine(role: role, term: 3)
    #expect(roles.handle(.laterTerm(3)) == nil)
    #expect(roles.handle(.laterTerm(4))?.to == .fenced)
    #expect(!roles.mayEmit)
    for event in [
      RoleEvent.secondaryConnected, .withdrew, .firstCheckpoint, .peerLost, .takeoverDone, .failoverDemanded,
      .laterTerm(9),
    ] {
      #expect(roles.handle(event) == nil)
    }
    #expect(roles.role == .fenced)
  }

  /// Only one of the two may serve clients, whatever happens in whatever order, as long as each hears of the other's term.
  @Test func emitting_isForServingRolesOnly() {
    for role in Role.allCases {
      #expect(RoleMachine(role: role).mayEmit == [Role.syncing, .primary, .alone].contains(role), "\(role)")
    }
  }
}
