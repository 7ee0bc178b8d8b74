extension Channel {
  /// Milliseconds that either side may take for its step.
  public static let admissionTime: UInt64 = 5000

  /// Secondary: the machine that the primary describes, which is the first that it sends.
  public func receiveConfiguration() throws -> [UInt8] {
    guard case .configuration(let description) = try receive(within: Self.admissionTime) else {
      throw ChannelError.notAuthentic
    }
    return description
  }

  /// Secondary: follows this primary. Before anything else is sent.
  public func admit() throws(ChannelError) { try send(.admission(refusal: "")) }

  /// Secondary: does not follow this primary; instead of everything else.
  public func refuse(_ why: String) {
    try? send(.admission(refusal: why))
    endSending(within: 100)
    // What comes unread would make the kernel reset the connection, and the other side might not read why.
    for _ in 0..<8 { if (try? receive(within: 200)) == nil { break } }
    close()
  }

  /// Primary: describes its machine, and waits for the secondary's word before anything else is sent.
  /// - Parameter milliseconds: at most.
  public func awaitAdmission(
    _ description: [UInt8], within milliseconds: UInt64 = admissionTime
  ) throws(ChannelError) {
    try send(.configuration(description))
    let message: Message
    do { message = try receive(within: milliseconds) } catch { throw error as? ChannelError ?? .notAuthentic }
    guard case .admission(let refusal) = message else { throw .notAuthentic }
    guard refusal.isEmpty else { throw .refused(refusal) }
  }
}
