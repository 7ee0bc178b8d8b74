/// Why a secondary follows no longer, though its channel works.
enum FollowError: Error, CustomStringConvertible {
  case dismissed(guestEnded: Bool)
  case demanded
  case tapLost

  var description: String {
    switch self {
    case .tapLost: "this side's tap has gone; make it again and start this side again"
    case .demanded: "this side was asked to take over"
    case .dismissed(true): "the guest has ended"
    case .dismissed(false): "the primary took this side for dead and goes on alone; start it again"
    }
  }
}
