extension Channel {
  /// ``post(_:card:number:frame:)`` of bytes in an array.
  public func post(_ kind: FrameMessage, card: UInt8, number: UInt64, frame: [UInt8]) throws(ChannelError) {
    let outcome: Result<Void, ChannelError> = unsafe frame.withUnsafeBytes { bytes in
      Result { () throws(ChannelError) in unsafe try post(kind, card: card, number: number, frame: bytes) }
    }
    try outcome.get()
  }
}
