internal import CKVM
internal import GuestMemory
public import StateCodec

/// What a host's guests are shown: the words of CPUID that say what they may execute, and the size of their state. A guest
/// can go on at another host only if that shows all of it.
public struct HostProcessor: Equatable, Sendable {
  /// Leaf, subleaf and register (EAX to EDX: 0 to 3) of each word, and its bits that mirror control registers, which change with the
  /// guest: OSXSAVE, OSPKE, APIC. Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.
  static let words: [(leaf: UInt32, subleaf: UInt32, register: Int, varying: UInt32)] = [
    (1, 0, 2, 1 << 27), (1, 0, 3, 1 << 9), (7, 0, 1, 0), (7, 0, 2, 1 << 4), (7, 0, 3, 0), (7, 1, 0, 0), (7, 1, 3, 0),
    (7, 2, 3, 0), (0xd, 0, 0, 0), (0xd, 1, 0, 0), (0xd, 1, 2, 0), (0x4000_0001, 0, 0, 0), (0x8000_0001, 0, 2, 0),
    (0x8000_0001, 0, 3, 1 << 9), (0x8000_0008, 0, 1, 0), (0x8000_0021, 0, 0, 0),
  ]

  /// A word that a table lacks some bits of.
  struct Lack: Equatable {
    var leaf: UInt32
    var register: String
    var bits: UInt32
  }

  /// In the order of ``words``.
  var features: [UInt32]
  /// Bytes of KVM's XSAVE area.
  var stateSize: UInt32

  init(features: [UInt32], stateSize: UInt32) {
    self.features = features
    self.stateSize = stateSize
  }

  /// - Parameter cpuid: what a vCPU shows.
  init(cpuid: [kvm_cpuid_entry2], stateSize: Int) {
    features = Self.words.map { word in
      guard let entry = cpuid.first(where: { $0.function == word.leaf && $0.index == word.subleaf }) else { return 0 }
      return [entry.eax, entry.ebx, entry.ecx, entry.edx][word.register] & ~word.varying
    }
    self.stateSize = UInt32(stateSize)
  }

  public var encoded: [UInt8] {
    var out = StateWriter()
    for word in features { out.put(word) }
    out.put(stateSize)
    return out.bytes
  }

  public init(decoding bytes: [UInt8]) throws(StateError) {
    var reader = StateReader(bytes)
    features = []
    for _ in Self.words { features.append(try reader.get()) }
    stateSize = try reader.get()
    guard reader.remaining == 0 else { throw .invalid("a description of a processor of \(bytes.count) bytes") }
  }

  /// Why a guest from `other` can't go on here; nil when it can.
  public func lacks(of other: HostProcessor) -> String? {
    if let lack = firstLack(of: other) {
      return
        "CPUID leaf 0x\(String(lack.leaf, radix: 16)), \(lack.register) bits 0x\(String(lack.bits, radix: 16)) are missing"
    }
    guard stateSize == other.stateSize else {
      return "its XSAVE area has \(stateSize) bytes, the other's \(other.stateSize)"
    }
    return nil
  }

  func firstLack(of other: HostProcessor) -> Lack? {
    for (index, word) in Self.words.enumerated() {
      let missing = other.features[index] & ~features[index]
      if missing != 0 {
        return Lack(leaf: word.leaf, register: ["EAX", "EBX", "ECX", "EDX"][word.register], bits: missing)
      }
    }
    return nil
  }
}

extension KVMSystem {
  /// What a guest is shown on this host: of a vCPU made to be asked, for KVM may show more than it is told to.
  public func hostProcessor() throws(MachineError) -> HostProcessor {
    let memory: GuestMemory
    do throws(GuestMemoryError) { memory = try GuestMemory(size: 1 << 20) } catch { throw .memory(error) }
    do throws(KVMError) {
      let vcpus = try Machine.makeVCPUs(1, try VirtualMachine(self, memory: memory), self)
      return HostProcessor(cpuid: try vcpus[0].cpuid(), stateSize: xsaveSize)
    } catch { throw .kvm(error) }
  }
}
