/// Why a secondary follows no longer, though its channel works.
enum FollowError: Error, CustomStringConvertible {
  case dismissed(guestEnded: Bool)
  case demanded
  /// The guest ended here and not on the primary.
  case ownGuestEnded(String)

  var description: String {
    switch self {
    case .demanded: "this side was asked to take over"
    case .ownGuestEnded(let how): "this side's guest ended by itself: \(how)"
    case .dismissed(true): "the guest has ended"
    case .dismissed(false): "the primary took this side for dead and goes on alone; start it again"
    }
  }
}
