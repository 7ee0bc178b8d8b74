import Testing

@testable import MiniVMM

extension MachineTests {
  /// What `doctor` makes of what it measures.
  @Suite struct ProbeTests {
    /// Slow alike is a slow host, such as one that is emulated itself; a kernel that is interpreted is slower than its user code.
    @Test(arguments: [(25.7, 25.7, true), (2500, 2500, true), (12, 25, true), (1.7, 2500, false), (0.3, 26, false)])
    func kernelCode_isJudgedBesideUserCode(kernel: Double, user: Double, isNative: Bool) {
      let finding = HostProbe.kernelCode(kernel, user)
      #expect(finding.verdict == (isNative ? .ok : .note))
      #expect(finding.text.hasPrefix(isNative ? "native" : "interpreted"))
    }

    @Test func speedProbes_runInBothRings() throws {
      let system = try KVMSystem()
      for ring: UInt8 in [0, 3] { #expect(try TinyGuest.speed(system, ring: ring) > 0) }
    }
  }
}
