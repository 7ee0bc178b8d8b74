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
    let bytes = try receive(within: milliseconds)
    do { message = try Message(decoding: bytes) } catch { throw .notAuthentic }
    guard case .admission(let refusal) = message else { throw .notAuthentic }
    guard refusal.isEmpty else { throw .refused(refusal) }
  }
}
