import LabC

/// How many CPUs the VMM wants active (`PairLayout.swift`): the others finish what they are at and stay in HLT. What is asked lies in
/// memory of ours, so that every CPU can look for itself; the interrupt wakes CPU 0, which wakes those that are wanted again.
enum ActiveCPUs {
  nonisolated(unsafe) private static var control = UnsafeMutableRawPointer.unset
  nonisolated(unsafe) private static var isAsked = false
  /// What CPU 0 has answered last.
  nonisolated(unsafe) private static var answered: UInt32 = 0

  static func setUp() {
    guard mmio_read32(PairRegister.address + PairRegister.magic) == PairRegister.magicValue,
      mmio_read32(PairRegister.address + PairRegister.features) & PairFeature.activeCPUs != 0
    else { return }
    control = Arena.takeZeroed(64)
    mmio_write32(PairRegister.address + PairRegister.controlLow, UInt32(truncatingIfNeeded: address(control)))
    mmio_write32(PairRegister.address + PairRegister.controlHigh, UInt32(address(control) >> 32))
    Interrupts.route(irq: PairRegister.interrupt)
    isAsked = true
  }

  private static var wanted: UInt32 {
    let wanted = load32(control + Int(PairControl.wanted))
    return wanted == 0 ? UInt32.max : wanted
  }

  static func isActive(_ cpu: UInt32) -> Bool { !isAsked || cpu < wanted }

  /// A secondary CPU that holds nothing stays here while it is not wanted, or until a word is not 0; who writes that wakes it.
  static func rest(_ cpu: UInt32, until word: UnsafeMutableRawPointer) {
    while true {
      Interrupts.prepareToIdle(cpu: cpu)
      if isActive(cpu) || load32(word) != 0 { return }
      Interrupts.idle(nanoseconds: nil)
    }
  }

  /// CPU 0, in every turn of the main loop.
  static func poll() {
    guard isAsked else { return }
    let active = min(wanted, Processors.started)
    guard active != answered else { return }
    if active > answered { for cpu in max(answered, 1)..<active { Processors.wake(cpu) } }
    answered = active
    store32(control + Int(PairControl.active), active)
  }
}
