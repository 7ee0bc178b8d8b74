internal import CKVM

/// Model-specific registers that are read together, again and again: their `kvm_msrs` is made once. For one thread at a time.
@safe final class RegisterList: @unchecked Sendable {
  private nonisolated(unsafe) let memory: UnsafeMutableRawPointer
  private static let headerSize = MemoryLayout<kvm_msrs>.size
  private static let stride = MemoryLayout<kvm_msr_entry>.stride

  init(_ indices: [UInt32]) {
    let size = Self.headerSize + indices.count * Self.stride
    unsafe memory = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: MemoryLayout<kvm_msrs>.alignment)
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    unsafe memory.storeBytes(of: UInt32(indices.count), as: UInt32.self)
    for (index, register) in indices.enumerated() {
      unsafe memory.storeBytes(of: register, toByteOffset: Self.headerSize + index * Self.stride, as: UInt32.self)
    }
  }

  deinit { unsafe memory.deallocate() }

  /// The values of `vcpu`'s, in order; without those from the first that KVM does not read.
  func read(_ vcpu: borrowing Descriptor) throws(KVMError) -> [VCPUState.Register] {
    let read = unsafe vcpu.rawCall(.getMSRs, memory)
    guard read >= 0 else { throw .failed(.getMSRs, errno: -read) }
    return (0..<Int(read)).map { index in
      let entry = unsafe memory.load(fromByteOffset: Self.headerSize + index * Self.stride, as: kvm_msr_entry.self)
      return VCPUState.Register(index: entry.index, value: entry.data)
    }
  }
}
