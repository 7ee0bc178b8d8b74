import LabC

/// One client of the key-value store. Everything it can make us keep is bounded: an input buffer, one value being
/// received, one being sent, and a few sent values not yet acknowledged.
struct KVConnection {
  static let inputSize = 8192
  static let mostInFlight = 32

  enum Several: UInt8 { case none, tokens, bulk }

  var pcb: UnsafeMutablePointer<tcp_pcb>?
  var isRedis: Bool
  /// Bytes taken from the stream and not yet understood: input[inputStart..<inputEnd].
  var input: UnsafeMutablePointer<UInt8>
  var inputCapacity: Int
  var inputStart: Int
  var inputEnd: Int
  /// Received data not yet taken.
  var waiting: UnsafeMutablePointer<pbuf>?

  /// A value being received: bytes go straight into the item.
  var receiving: ValueCursor?
  var storing: StoreRequest
  /// Bytes to be thrown away: a value too large to keep.
  var swallow: UInt64

  /// A value being sent from where it is stored.
  var sending: ValueCursor?
  /// A command of several keys that is answered key by key: where it goes on, where it ends.
  var several: Several
  var severalAt: Int
  var severalEnd: Int
  var severalLeft: UInt64
  var severalWithCAS: Bool
  /// A key of it was not there.
  var severalMissed: Bool

  /// Values sent and not yet acknowledged, a ring: item and the stream position at which it ends.
  var inFlight: UnsafeMutablePointer<InFlight>
  var inFlightHead: Int
  var inFlightCount: Int
  var written: UInt64
  var acknowledged: UInt64
  var uncopiedInFlight: UInt64

  /// No more commands: close when what is on its way has arrived.
  var closing: Bool
  /// The client will send no more: close when all it asked for is answered.
  var peerClosed: Bool
  var lastProgress: UInt64
}

struct InFlight {
  var item: UnsafeMutablePointer<Item>?
  var end: UInt64
}

/// What is to be done with a value once it has arrived.
struct StoreRequest {
  enum Kind: UInt8 { case set, add, replace, cas, append, prepend }

  var kind = Kind.set
  var silent = false
  var cas: UInt64 = 0
  /// Bytes of the line end after the value that have still to come.
  var lineEnd = 0
  var badLineEnd = false
}
