extension Channel {
  /// Secondary: follows this primary. Before anything else is sent.
  public func admit() throws(ChannelError) { try send(.admission(refusal: "")) }

  /// Secondary: does not follow this primary; instead of everything else.
  public func refuse(_ why: String) {
    try? send(.admission(refusal: why))
    endSending(within: 100)
    close()
  }

  /// Primary: waits for the secondary's word before anything is sent.
  /// - Parameter milliseconds: at most.
  public func awaitAdmission(within milliseconds: UInt64 = 2000) throws(ChannelError) {
    let message: Message
    do { message = try receive(within: milliseconds) } catch { throw error as? ChannelError ?? .notAuthentic }
    guard case .admission(let refusal) = message else { throw .notAuthentic }
    guard refusal.isEmpty else { throw .refused(refusal) }
  }
}
