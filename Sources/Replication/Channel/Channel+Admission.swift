extension Channel {
  /// Milliseconds that either side may take for its step.
  public static let admissionTime: UInt64 = 5000

  /// Secondary: the term in which the primary serves, and the machine that it describes, which is the first that it sends.
  public func receiveConfiguration(
    within milliseconds: UInt64 = admissionTime
  ) throws -> (term: UInt64, description: [UInt8]) {
    guard case .configuration(let term, let description) = try receive(within: milliseconds) else {
      throw ChannelError.notAuthentic
    }
    return (term, description)
  }

  /// Secondary: follows this primary. Before anything else is sent.
  public func admit() throws(ChannelError) { try send(.admission(refusal: "", term: 0)) }

  /// Secondary: does not follow this primary; instead of everything else.
  /// - Parameter term: in which this side, or the primary that it follows, serves the same guest; 0 where that is not so.
  public func refuse(_ why: String, term: UInt64 = 0) {
    try? send(.admission(refusal: why, term: term))
    endSending(within: 100)
    // What comes unread would make the kernel reset the connection, and the other side might not read why.
    for _ in 0..<8 { if (try? receive(within: 200)) == nil { break } }
    close()
  }

  /// Primary: describes its machine, and waits for the secondary's word before anything else is sent.
  /// - Parameters:
  ///   - term: in which this side serves.
  ///   - milliseconds: at most.
  public func awaitAdmission(
    _ description: [UInt8], term: UInt64, within milliseconds: UInt64 = admissionTime
  ) throws(ChannelError) {
    try send(.configuration(term: term, description: description))
    let message: Message
    do { message = try receive(within: milliseconds) } catch { throw error as? ChannelError ?? .notAuthentic }
    guard case .admission(let refusal, let other) = message else { throw .notAuthentic }
    guard other <= term else { throw .replaced(term: other) }
    guard refusal.isEmpty else { throw other == 0 ? .refused(refusal) : .served(refusal) }
  }
}
