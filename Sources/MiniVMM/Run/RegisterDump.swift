internal import CKVM
internal import GuestMemory

/// A vCPU's registers when its guest could not go on, for people.
public struct RegisterDump: Equatable, Sendable {
  public let vcpu: Int
  /// In the order of ``names``.
  let general: [UInt64]
  public let rip: UInt64
  let rflags: UInt64
  let (cs, csBase): (UInt16, UInt64)
  public let cpl: UInt8
  let (cr0, cr2, cr3, cr4, efer): (UInt64, UInt64, UInt64, UInt64, UInt64)
  /// The bytes at RIP, at most 16; none where that is no RAM.
  public let instruction: [UInt8]

  private static let names = [
    "RAX", "RBX", "RCX", "RDX", "RSI", "RDI", "RBP", "RSP", "R8", "R9", "R10", "R11", "R12", "R13", "R14", "R15",
  ]

  /// On the vCPU's thread, out of KVM_RUN.
  /// - Parameter instruction: what KVM told of it; empty where it tells nothing.
  init(_ vcpu: VirtualCPU, _ memory: GuestMemory, instruction: [UInt8] = []) throws(KVMError) {
    let regs = try vcpu.regs()
    let sregs = try vcpu.sregs()
    self.vcpu = vcpu.index
    general = [
      regs.rax, regs.rbx, regs.rcx, regs.rdx, regs.rsi, regs.rdi, regs.rbp, regs.rsp, regs.r8, regs.r9, regs.r10,
      regs.r11,
      regs.r12, regs.r13, regs.r14, regs.r15,
    ]
    (rip, rflags) = (regs.rip, regs.rflags)
    (cs, csBase, cpl) = (sregs.cs.selector, sregs.cs.base, sregs.ss.dpl)
    (cr0, cr2, cr3, cr4, efer) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer)
    self.instruction = instruction.isEmpty ? Self.bytes(at: csBase &+ rip, vcpu, memory) : instruction
  }

  /// What lies at a linear address, as far as its page goes.
  private static func bytes(at address: UInt64, _ vcpu: VirtualCPU, _ memory: GuestMemory) -> [UInt8] {
    var translation = kvm_translation()
    translation.linear_address = address
    guard (try? vcpu.descriptor.call(.translate, &translation)) != nil, translation.valid != 0 else { return [] }
    let count = min(16, GuestMemory.pageSize - address % GuestMemory.pageSize)
    return (try? memory.bytes(at: translation.physical_address, count: Int(count))) ?? []
  }

  /// RIP and CS of the x86 reset vector, in real mode: KVM on AMD resets a vCPU whose guest has shut down.
  private var isOfAReset: Bool { rip == 0xfff0 && cs == 0xf000 && cr0 & 1 == 0 }
}

extension RegisterDump: CustomStringConvertible {
  /// Eight lines at most.
  public var description: String {
    var lines = [
      "vcpu\(vcpu) RIP \(hex(rip)) CS \(hex(UInt64(cs))) base \(hex(csBase)) CPL \(cpl) RFLAGS \(hex(rflags))",
      "CR0 \(hex(cr0)) CR2 \(hex(cr2)) CR3 \(hex(cr3)) CR4 \(hex(cr4)) EFER \(hex(efer))",
    ]
    for first in stride(from: 0, to: general.count, by: 4) {
      lines.append((first..<first + 4).map { "\(Self.names[$0]) \(hex(general[$0]))" }.joined(separator: " "))
    }
    let bytes = instruction.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined(separator: " ")
    lines.append("instruction " + (bytes.isEmpty ? "not readable" : bytes))
    if isOfAReset {
      lines.append("these are the registers after a reset: this host's KVM does not keep those of before")
    }
    return lines.joined(separator: "\n  ")
  }
}
