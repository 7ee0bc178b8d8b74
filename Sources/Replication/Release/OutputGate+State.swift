/// What ``OutputGate`` keeps.
extension OutputGate {
  /// A frame in the gate. Its place is used again, bytes included.
  struct Held {
    var facts = OutputFacts(epoch: 0, inputGiven: 0)
    var flow = FlowKey.none
    /// The next frame of the flow, by its token.
    var next = OutputGate.none
    var since: UInt64 = 0
    var told: UInt64 = 0
    var isHeld = false
    var bytes: [UInt8] = []
  }

  struct Flow {
    var first: UInt64
    var last: UInt64
  }

  /// Taken out of ``State/leaving``; those from `first` on are still to be sent.
  struct Outgoing {
    var frames: [Leaving] = []
    var first = 0
    /// The secondary knows of those that leave early, but for this.
    var told: UInt64 = 0
  }

  struct State {
    var epoch: UInt64 = 1
    var secondary = SecondaryProgress()
    var isProtected = false
    var isFenced = false
    /// Place of token t: t modulo the count, a power of two.
    var ring: [Held]
    /// The oldest token that may still be held, and the next to be given.
    var oldest: UInt64 = 0
    var next: UInt64 = 0
    var flows: [FlowKey: Flow] = [:]
    /// May leave, and has not yet: in this order.
    var leaving: [Leaving] = []
    /// Memory of frames that have left.
    var spare: [[UInt8]] = []
    /// Flows of which something left early in this epoch, and in the one before it.
    var earlyFlows: Set<FlowKey> = []
    var earlyBefore: Set<FlowKey> = []
    /// Flows of which something wrong left early, and in which epoch: the checkpoint that ends it puts the secondary's guest right.
    var distrusted: [FlowKey: UInt64] = [:]
    var heldFrames = 0
    var heldBytes = 0
    /// Tokens below these have been looked at since the secondary said so much.
    var looked: UInt64 = 0
    /// Those below have been found overdue once.
    var asked: UInt64 = 0
    var counters = Counters()
    /// How long those were held that were let out, in nanoseconds.
    var times = Histogram()

    subscript(_ token: UInt64) -> Held {
      _read { yield ring[Int(token & UInt64(ring.count - 1))] }
      _modify { yield &ring[Int(token & UInt64(ring.count - 1))] }
    }
  }
}
