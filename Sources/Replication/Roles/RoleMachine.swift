/// What one side of a pair is at the moment.
public enum Role: String, Codable, Sendable, CaseIterable {
  /// Runs the guest and has a secondary that is not yet in step: unprotected.
  case syncing
  /// Runs the guest for the clients; a secondary could take over.
  case primary
  /// Gets its first state; could not take over.
  case joining
  /// Holds a whole checkpoint and could take over.
  case secondary
  /// Was secondary; brings its state up to what clients may have been told. Nothing has left it yet.
  case takingOver
  /// Runs the guest without a secondary.
  case alone
  /// Ran the guest, and was stopped for so long that its secondary may serve by now: lets nothing out until it has been told.
  case quarantined
  /// Knows that another serves the clients: may not let out a frame, ever again.
  case fenced
}

/// Why a role changed.
public enum RoleEvent: Equatable, Sendable {
  case secondaryConnected
  /// The first whole checkpoint is with the secondary.
  case firstCheckpoint
  /// The peer is dead by the detector, or its connection ended.
  case peerLost
  /// The peer is lost, and this side was stopped for so long that the peer may have taken over.
  case stalled
  /// The peer said that there is nothing to take over: the guest has ended, or it goes on alone.
  case peerSaidFarewell
  case takeoverDone
  /// Somebody asked this side to take over.
  case failoverDemanded
  /// A secondary can't serve the clients any more, and tells the primary so.
  case withdrew
  /// The peer, or a witness, names a later term than ours.
  case laterTerm(UInt64)
}

extension RoleEvent: CustomStringConvertible {
  public var description: String {
    switch self {
    case .secondaryConnected: "a secondary is there"
    case .firstCheckpoint: "the first checkpoint is whole"
    case .peerLost: "the other side is lost"
    case .stalled: "this side was stopped, and its secondary may serve by now"
    case .peerSaidFarewell: "the other side said farewell"
    case .takeoverDone: "the takeover is done"
    case .failoverDemanded: "asked to take over"
    case .withdrew: "this side has left the pair"
    case .laterTerm(let term): "the other side serves in term \(term)"
    }
  }
}

/// The roles and the ways between them; the only place that changes a role. A value.
///
/// A term counts takeovers: the survivor raises it, and says it to whoever comes back. Whoever hears a later term than its
/// own has been replaced.
public struct RoleMachine: Sendable {
  public struct Transition: Equatable, Sendable {
    public let from: Role
    public let to: Role
    public let cause: RoleEvent
  }

  public private(set) var role: Role
  public private(set) var term: UInt64

  public init(role: Role, term: UInt64 = 1) {
    self.role = role
    self.term = term
  }

  /// Whether the guest's frames may go to the clients.
  public var mayEmit: Bool { role == .syncing || role == .primary || role == .alone }

  /// Takes in an event: the transition it caused, or nil when it changes nothing in this role.
  public mutating func handle(_ event: RoleEvent) -> Transition? {
    let from = role
    switch (role, event) {
    case (.fenced, _): return nil
    case (_, .laterTerm(let later)):
      guard later > term else { return nil }
      term = later
      // A secondary follows the newer primary; whoever serves clients has been replaced.
      guard role != .secondary, role != .joining else { return nil }
      role = .fenced
    case (.alone, .secondaryConnected): role = .syncing
    case (.syncing, .stalled), (.primary, .stalled): role = .quarantined
    case (.quarantined, .peerLost): role = .alone
    case (.syncing, .firstCheckpoint): role = .primary
    case (.joining, .firstCheckpoint): role = .secondary
    case (.syncing, .peerLost), (.primary, .peerLost), (.syncing, .peerSaidFarewell), (.primary, .peerSaidFarewell):
      role = .alone
    case (.secondary, .peerLost), (.secondary, .failoverDemanded):
      role = .takingOver
      term += 1
    case (.takingOver, .takeoverDone): role = .alone
    case (.secondary, .peerSaidFarewell), (.joining, .peerSaidFarewell), (.secondary, .withdrew), (.joining, .withdrew):
      role = .fenced
    default: return nil
    }
    return Transition(from: from, to: role, cause: event)
  }
}
