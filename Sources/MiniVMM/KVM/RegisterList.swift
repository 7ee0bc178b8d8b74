internal import CKVM
internal import Synchronization

/// Model-specific registers that are read together, again and again: their `kvm_msrs` is made once. From any thread.
final class RegisterList: Sendable {
  /// The structure as the kernel's ABI has it, little-endian: a count, then an index (4 bytes, 4 unused) and a value of each.
  private let words: Mutex<[UInt64]>

  init(_ indices: [UInt32]) { words = Mutex([UInt64(indices.count)] + indices.flatMap { [UInt64($0), 0] }) }

  /// The values of `vcpu`'s, in order. All of them: a state without one of its registers would be another state.
  func read(_ vcpu: borrowing Descriptor) throws(KVMError) -> [VCPUState.Register] {
    let (registers, result) = words.withLock { words in
      let result = unsafe words.withUnsafeMutableBytes { unsafe vcpu.rawCall(.getMSRs, $0.baseAddress) }
      let registers = (0..<Int(words[0])).map { index in
        VCPUState.Register(index: UInt32(truncatingIfNeeded: words[1 + 2 * index]), value: words[2 + 2 * index])
      }
      return (registers, result)
    }
    guard result >= 0 else { throw .failed(.getMSRs, errno: -result) }
    // KVM stops at the first one that it does not read.
    guard result >= registers.count else { throw .registerUnreadable(msr: registers[Int(result)].index) }
    return registers
  }
}
