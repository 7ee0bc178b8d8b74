import LabC

/// What a second CPU does while the device is at work. With one CPU the same is done right after the notification.
enum RaceCases {
  nonisolated(unsafe) private static var stop = UnsafeMutablePointer<UInt32>.unset

  private static func withOtherCPU(_ job: @convention(c) (UInt64) -> Void, _ work: () -> Void) {
    if stop.isUnset { stop = Arena.takeZeroed(UInt32.self, count: 1) }
    store32(stop, 0)
    Processors.startAll()
    let hasOther = Processors.started > 1
    if hasOther { Processors.run(on: 1, job, 0) }
    work()
    store32(stop, 1)
    if hasOther { while !Processors.isDone(1) { cpu_pause() } }
  }

  /// Descriptors and request header change between valid and invalid while the device reads them.
  static func rewriteDescriptors() {
    withOtherCPU({ _ in while load32(RaceCases.stop) == 0 { RaceCases.scribble() } }) {
      for _ in 0..<2000 {
        QueueCases.honest()
        Victim.offer(0)
        Victim.notify()
        if Processors.started == 1 { scribble() }
        if Victim.transport.status & DeviceStatus.needsReset != 0 { Victim.bringUp() }
      }
    }
  }

  nonisolated(unsafe) private static var scribbles = Random(seed: 77)

  private static func scribble() {
    let choice = scribbles.next(below: 6)
    let slot = Victim.descriptors + 16 * Int(scribbles.next(below: 3))
    switch choice {
    case 0: slot.storeBytes(of: 0xffff_ffff_ffff_0000, as: UInt64.self)
    case 1: slot.storeBytes(of: Victim.scratch + 4096, as: UInt64.self)
    case 2: slot.storeBytes(of: 0xffff_ffff, toByteOffset: 8, as: UInt32.self)
    case 3: slot.storeBytes(of: UInt16(truncatingIfNeeded: scribbles.next(below: 8)), toByteOffset: 12, as: UInt16.self)
    case 4: slot.storeBytes(of: UInt16(truncatingIfNeeded: scribbles.next()), toByteOffset: 14, as: UInt16.self)
    default:
      physical(Victim.scratch).storeBytes(
        of: scribbles.next(), toByteOffset: 8, as: UInt64.self)  // the sector of the request header
    }
  }

  static func rewriteAvailIndex() {
    withOtherCPU({ _ in
      var value: UInt16 = 0
      while load32(RaceCases.stop) == 0 {
        store16(Victim.avail + 2, value)
        value &+= 12345
      }
    }) {
      for _ in 0..<2000 {
        QueueCases.honest()
        Victim.offer(0)
        Victim.notify()
        if Victim.transport.status & DeviceStatus.needsReset != 0 { Victim.bringUp() }
      }
    }
  }

  // MARK: Reset

  private static func fill() {
    QueueCases.honest()
    for _ in 0..<Victim.size / 2 { Victim.offer(0) }
    Victim.notify()
  }

  /// Reset with requests under way; none may complete afterwards.
  static func resetInFlight() {
    for _ in 0..<50 {
      fill()
      Victim.transport.reset()
      let after = Victim.usedIndex
      Processors.pause(microseconds: 500)
      Hostile.expect(Victim.usedIndex == after, "a completion after the reset")
      Victim.bringUp()
    }
  }

  static func resetTwice() {
    fill()
    Victim.transport.reset()
    Victim.transport.reset()
    Victim.transport.write(MMIORegister.status, 0)
  }

  static func resetFromOtherCPU() {
    withOtherCPU({ _ in
      while load32(RaceCases.stop) == 0 {
        Victim.transport.write(MMIORegister.status, 0)
        Processors.pause(microseconds: 200)
      }
    }) {
      for _ in 0..<200 {
        Victim.bringUp()
        fill()
      }
    }
  }
}
