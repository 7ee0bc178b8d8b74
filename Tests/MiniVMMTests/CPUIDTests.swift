import CKVM
import Testing

@testable import MiniVMM

/// What KVM_GET_SUPPORTED_CPUID gives on a kind of host, as far as it matters: leaf, subleaf, EAX, EBX, ECX, EDX.
struct CPUIDFixture: CustomTestStringConvertible, Sendable {
  let testDescription: String
  let rows: [(UInt32, UInt32, UInt32, UInt32, UInt32, UInt32)]

  var entries: [kvm_cpuid_entry2] {
    rows.map { row in
      var entry = kvm_cpuid_entry2()
      (entry.function, entry.index) = (row.0, row.1)
      (entry.eax, entry.ebx, entry.ecx, entry.edx) = (row.2, row.3, row.4, row.5)
      return entry
    }
  }

  private static let intel: (UInt32, UInt32, UInt32) = (0x756e_6547, 0x6c65_746e, 0x4965_6e69)  // EBX, ECX, EDX
  private static let amd: (UInt32, UInt32, UInt32) = (0x6874_7541, 0x444d_4163, 0x6974_6e65)
  private static let kvm: [(UInt32, UInt32, UInt32, UInt32, UInt32, UInt32)] = [
    (0x4000_0000, 0, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
    (0x4000_0001, 0, 0x0100_7efb, 0, 0, 0),
  ]

  /// A client with two kinds of cores (Alder Lake): leaf 0x1f, HYBRID, VMX, a PMU with PDCM and DS, SGX.
  static let intelClient = CPUIDFixture(
    testDescription: "Intel client",
    rows: [
      (0, 0, 0x20, intel.0, intel.1, intel.2),
      (1, 0, 0x0009_0672, 0x0010_0800, 0x76fa_b227, 0x1fab_fbff),
      (4, 0, 0x1c00_4121, 0x02c0_003f, 0x3f, 0), (4, 1, 0x1c00_4122, 0x01c0_003f, 0x3f, 0),
      (4, 2, 0x1c00_4143, 0x0240_003f, 0x7ff, 0), (4, 3, 0x1c03_c163, 0x0240_003f, 0x9fff, 4), (4, 4, 0, 0, 0, 0),
      (7, 0, 2, 0x239c_27ef, 0x58c0_07ac, 0xfc18_c410), (7, 1, 0x0040_0d30, 0, 0, 0), (7, 2, 0, 0, 0, 0x17),
      (0xa, 0, 0x0760_3605, 0, 7, 0x8600),
      (0xb, 0, 1, 2, 0x100, 0), (0xb, 1, 7, 24, 0x201, 0), (0xb, 2, 0, 0, 2, 0),
      (0xd, 0, 0x207, 0xa88, 0xa88, 0), (0xd, 1, 0xf, 0x348, 0x1800, 0), (0xd, 2, 0x100, 0x240, 0, 0),
      (0xd, 9, 8, 0xa80, 0, 0), (0x12, 0, 0, 0, 0, 0), (0x12, 1, 0, 0, 0, 0),
      (0x15, 0, 2, 0xa6, 0x0249_f000, 0), (0x16, 0, 0xc80, 0x1450, 0x64, 0),
      (0x1f, 0, 1, 2, 0x100, 0), (0x1f, 1, 7, 24, 0x201, 0), (0x1f, 2, 0, 0, 2, 0),
    ] + kvm + [
      (0x8000_0000, 0, 0x8000_0008, 0, 0, 0), (0x8000_0001, 0, 0, 0, 0x121, 0x2c10_0800),
      (0x8000_0008, 0, 0x3927, 0, 0, 0),
    ])

  /// A server with AMX (Sapphire Rapids), on a kernel that offers it.
  static let intelServer = CPUIDFixture(
    testDescription: "Intel server with AMX",
    rows: [
      (0, 0, 0x20, intel.0, intel.1, intel.2),
      (1, 0, 0x000c_06f2, 0x0040_0800, 0x77fa_b22b, 0x0f8b_fbff),
      (4, 0, 0xfc00_4121, 0x02c0_003f, 0x3f, 0), (4, 1, 0xfc00_4122, 0x01c0_003f, 0x3f, 0),
      (4, 2, 0xfc00_4143, 0x03c0_003f, 0x7ff, 0), (4, 3, 0xfc0f_c163, 0x0380_003f, 0x1_bfff, 4), (4, 4, 0, 0, 0, 0),
      (7, 0, 2, 0xf1bf_27ef, 0x1b41_5f6e, 0xffdd_4410), (7, 1, 0x0020_1c30, 0, 0, 0x100), (7, 2, 0, 0, 0, 0x1f),
      (0xa, 0, 0x0830_0805, 0, 7, 0x8604),
      (0xb, 0, 1, 2, 0x100, 0), (0xb, 1, 7, 96, 0x201, 0),
      (0xd, 0, 0x6_02e7, 0x2b00, 0x2b00, 0), (0xd, 1, 0x1f, 0x2b00, 0x1800, 0), (0xd, 2, 0x100, 0x240, 0, 0),
      (0xd, 5, 0x40, 0x440, 0, 0), (0xd, 6, 0x200, 0x480, 0, 0), (0xd, 7, 0x400, 0x680, 0, 0), (0xd, 9, 8, 0xa80, 0, 0),
      (0xd, 17, 0x40, 0xac0, 2, 0), (0xd, 18, 0x2000, 0xb00, 6, 0),
      (0x1d, 0, 1, 0, 0, 0), (0x1d, 1, 0x0400_2000, 0x0008_0040, 0x10, 0), (0x1e, 0, 0, 0x4010, 0, 0),
      (0x1e, 1, 0x1f, 0, 0, 0), (0x1f, 0, 1, 2, 0x100, 0), (0x1f, 1, 7, 96, 0x201, 0), (0x23, 0, 0xf, 0, 0, 0),
    ] + kvm + [
      (0x8000_0000, 0, 0x8000_0008, 0, 0, 0), (0x8000_0001, 0, 0, 0, 0x121, 0x2c10_0800),
      (0x8000_0008, 0, 0x3934, 0x200, 0, 0),
    ])

  /// A server (Zen 4): SVM, SEV, core counters, two leaves of caches and cores.
  static let amdServer = CPUIDFixture(
    testDescription: "AMD",
    rows: [
      (0, 0, 0x10, amd.0, amd.1, amd.2),
      (1, 0, 0x00a1_0f11, 0x0020_0800, 0x76fa_320b, 0x178b_fbff),
      (7, 0, 1, 0xf1bf_97a9, 0x0040_5fce, 0x10), (7, 1, 0x20, 0, 0, 0),
      (0xb, 0, 1, 2, 0x100, 0), (0xb, 1, 5, 32, 0x201, 0),
      (0xd, 0, 0x2e7, 0x988, 0x988, 0), (0xd, 1, 0xf, 0x358, 0x1800, 0), (0xd, 2, 0x100, 0x240, 0, 0),
      (0xd, 5, 0x40, 0x340, 0, 0), (0xd, 6, 0x200, 0x380, 0, 0), (0xd, 7, 0x400, 0x580, 0, 0), (0xd, 9, 8, 0x980, 0, 0),
    ] + kvm + [
      (0x8000_0000, 0, 0x8000_0022, amd.0, amd.1, amd.2), (0x8000_0001, 0, 0x00a1_0f11, 0, 0x75c2_37ff, 0x2fd3_fbff),
      (0x8000_0008, 0, 0x3934, 0x1114_d000, 0x501f, 0), (0x8000_000a, 0, 1, 8, 0, 0x0119_b9ff),
      (0x8000_001d, 0, 0x4121, 0x01c0_003f, 0x3f, 0), (0x8000_001d, 1, 0x4122, 0x01c0_003f, 0x3f, 0),
      (0x8000_001d, 2, 0x4143, 0x01c0_003f, 0x7ff, 2), (0x8000_001d, 3, 0x3_c163, 0x03c0_003f, 0x7fff, 1),
      (0x8000_001e, 0, 0x11, 0x105, 0x101, 0), (0x8000_001f, 0, 0x0006_bfff, 0x5173, 0x3ee, 1),
      (0x8000_0021, 0, 0x45, 0, 0, 0), (0x8000_0022, 0, 1, 6, 0, 0),
    ])

  /// Before XSAVE (Core 2): the last level is the second, and leaf 0xd is not there.
  static let old = CPUIDFixture(
    testDescription: "without XSAVE",
    rows: [
      (0, 0, 0xa, intel.0, intel.1, intel.2),
      (1, 0, 0x0000_06fb, 0x0002_0800, 0x8000_22a1, 0x0783_fbff),
      (4, 0, 0x0400_0121, 0x01c0_003f, 0x3f, 1), (4, 1, 0x0400_0122, 0x01c0_003f, 0x3f, 1),
      (4, 2, 0x0400_4143, 0x03c0_003f, 0xfff, 1), (4, 3, 0, 0, 0, 0), (0xa, 0, 0x0728_0202, 0, 0, 0x503),
    ] + kvm + [
      (0x8000_0000, 0, 0x8000_0008, 0, 0, 0), (0x8000_0001, 0, 0, 0, 1, 0x2010_0800),
      (0x8000_0008, 0, 0x3024, 0, 0, 0),
    ])

  /// A KVM without VMX or SVM, which lists leaves full of zeros and an XSAVE area without the XSAVE bit.
  static let software = CPUIDFixture(
    testDescription: "software KVM",
    rows: [
      (0, 0, 0x20, intel.0, intel.1, intel.2),
      (1, 0, 0x000c_06f2, 0x0002_0800, 0x8120_2000, 0x0f8b_fbff),
      (4, 0, 0x0400_0121, 0x02c0_003f, 0x3f, 0), (4, 1, 0x0400_0122, 0x01c0_003f, 0x3f, 0),
      (4, 2, 0x0400_0143, 0x03c0_003f, 0x7ff, 0), (4, 3, 0x0400_4163, 0x04c0_003f, 0x3_bfff, 4), (4, 4, 0, 0, 0, 0),
      (7, 0, 2, 0x0180_2042, 0x1a01_0104, 0xbc01_0400), (7, 1, 0x1c00, 0, 0, 0), (7, 2, 0, 0, 0, 0x1f),
      (0xa, 0, 0, 0, 0, 0), (0xb, 0, 0, 0, 0, 0),
      (0xd, 0, 0x2e7, 0xa88, 0xa88, 0), (0xd, 1, 0, 0, 0, 0), (0xd, 2, 0x100, 0x240, 0, 0), (0xd, 5, 0x40, 0x440, 0, 0),
      (0xd, 6, 0x200, 0x480, 0, 0), (0xd, 7, 0x400, 0x680, 0, 0), (0xd, 9, 8, 0xa80, 0, 0),
      (0x15, 0, 0, 0, 0, 0), (0x1d, 0, 0, 0, 0, 0), (0x1f, 0, 0, 0, 0, 0), (0x20, 0, 0, 0, 0, 0),
    ] + kvm + [
      (0x8000_0000, 0, 0x8000_0008, 0, 0, 0), (0x8000_0001, 0, 0, 0, 0x101, 0x2010_0800),
      (0x8000_0008, 0, 0x392e, 0x0100_d200, 0, 0),
    ])

  static let all = [intelClient, intelServer, amdServer, old, software]
}

@Suite("CPUID") struct CPUIDTests {
  private func table(_ fixture: CPUIDFixture, index: Int = 0, cpus: Int = 1) -> [kvm_cpuid_entry2] {
    CPUID.table(
      supported: fixture.entries, index: index,
      machine: CPUID.Machine(cpus: cpus, tscDeadline: true, tscKHz: 2_000_000, hypercalls: true))
  }

  private func leaf(_ table: [kvm_cpuid_entry2], _ leaf: UInt32, _ subleaf: UInt32 = 0) -> kvm_cpuid_entry2? {
    table.first { $0.function == leaf && $0.index == subleaf }
  }

  /// VMX, SMX; SVM and its leaf; SEV's. No leaf of Hyper-V, whose nested features are in 0x4000000a, is there at all.
  @Test(arguments: CPUIDFixture.all) func nestedVirtualisation_isNotShown(_ host: CPUIDFixture) throws {
    let table = table(host)
    #expect(try #require(leaf(table, 1)).ecx & (1 << 5 | 1 << 6) == 0)
    #expect(try #require(leaf(table, 0x8000_0001)).ecx & 1 << 2 == 0)
    for gone: UInt32 in [0x8000_000a, 0x8000_001f] { #expect(leaf(table, gone) == nil) }
    #expect(table.filter { $0.function >> 28 == 4 }.map(\.function) == [0x4000_0000, 0x4000_0001, 0x4000_0010])
  }

  @Test(arguments: CPUIDFixture.all) func noPMU_isShown(_ host: CPUIDFixture) throws {
    let table = table(host)
    for gone: UInt32 in [0xa, 0x23, 0x8000_0022] { #expect(leaf(table, gone) == nil) }
    let features = try #require(leaf(table, 1))
    #expect(features.ecx & (1 << 2 | 1 << 15) == 0 && features.edx & 1 << 21 == 0)
    #expect(try #require(leaf(table, 0x8000_0001)).ecx & (1 << 23 | 1 << 24 | 1 << 28) == 0)
    if let more = leaf(table, 7, 1) { #expect(more.eax & 1 << 8 == 0) }
  }

  /// AMX goes as a whole: tiles' features, state components and leaves. What else is in the words stays.
  @Test func amx_isMaskedAsAWhole() throws {
    let table = table(.intelServer)
    #expect(try #require(leaf(table, 7)).edx == 0xffdd_4410 & ~(1 << 15 | 1 << 22 | 1 << 24 | 1 << 25))
    #expect(try #require(leaf(table, 7, 1)).eax == 0x1c30)
    #expect(try #require(leaf(table, 7, 1)).edx == 0)
    #expect(try #require(leaf(table, 0xd)).eax == 0x2e7)
    #expect(try #require(leaf(table, 0xd, 1)).eax == 0xf)
    for (gone, subleaf): (UInt32, UInt32) in [(0xd, 17), (0xd, 18), (0x1d, 0), (0x1d, 1), (0x1e, 0), (0x1e, 1)] {
      #expect(leaf(table, gone, subleaf) == nil)
    }
  }

  /// The area is as large as the components that are left, each of which has its subleaf; x87 and SSE are on after a reset.
  @Test(
    arguments: [(CPUIDFixture.intelClient, 0xa88), (.intelServer, 0xa88), (.amdServer, 0x988), (.software, 0xa88)]
      as [(CPUIDFixture, UInt32)])
  func xsaveSizes_areThoseOfTheComponents(_ host: CPUIDFixture, size: UInt32) throws {
    let table = table(host)
    let main = try #require(leaf(table, 0xd))
    #expect(main.ecx == size && main.ebx == 576)
    let compacted = try #require(leaf(table, 0xd, 1))
    #expect(compacted.ebx == (compacted.eax & 2 == 0 ? 0 : 576))
    for component in 2..<UInt32(32) where main.eax >> component & 1 == 1 {
      let part = try #require(leaf(table, 0xd, component))
      #expect(part.eax + part.ebx <= main.ecx)
    }
  }

  @Test func hostWithoutXSAVE_getsNone() throws {
    let table = table(.old)
    #expect(!table.contains { $0.function == 0xd } && leaf(table, 1)!.ecx & 1 << 26 == 0)
  }

  @Test func sgxAndHybrid_areNotShown() throws {
    let table = table(.intelClient)
    let features = try #require(leaf(table, 7))
    #expect(features.ebx & 1 << 2 == 0 && features.ecx & 1 << 30 == 0 && features.edx & 1 << 15 == 0)
    #expect(leaf(table, 0x12) == nil)
  }

  /// Leaves 1, 4, 0xb, 0x1f, 0x80000008, 0x8000001d and 0x8000001e say the same of cores and APIC ids.
  @Test(arguments: CPUIDFixture.all, [1, 2, 3, 4, 8]) func topologyLeaves_agree(_ host: CPUIDFixture, cpus: Int) throws
  {
    let isAMD = CPUID.isAMD(host.entries)
    let bits: UInt32 = [1: 0, 2: 1, 3: 2, 4: 2, 8: 3][cpus]!
    for index in 0..<cpus {
      let table = table(host, index: index, cpus: cpus)
      let first = try #require(leaf(table, 1))
      #expect(first.ebx >> 24 == index && first.ebx >> 16 & 0xff == (isAMD ? UInt32(cpus) : 1 << bits))
      #expect(first.edx >> 28 & 1 == (cpus > 1 ? 1 : 0))
      for topology: UInt32 in [0xb, 0x1f] where topology == 0xb || host.rows.contains(where: { $0.0 == 0x1f }) {
        let (threads, cores) = (try #require(leaf(table, topology)), try #require(leaf(table, topology, 1)))
        #expect((threads.eax, threads.ebx, threads.ecx, threads.edx) == (0, 1, 0x100, UInt32(index)))
        #expect((cores.eax, cores.ebx, cores.ecx, cores.edx) == (bits, UInt32(cpus), 0x201, UInt32(index)))
        #expect(table.count { $0.function == topology } == 3)
      }
      #expect(try #require(leaf(table, 0)).eax >= 0xb)
      let sizes = try #require(leaf(table, 0x8000_0008))
      #expect(sizes.ecx & 0xff == UInt32(cpus - 1) && sizes.ecx >> 12 & 0xf == bits)
      for cache in table where cache.function == 4 && cache.eax & 0x1f != 0 {
        #expect(cache.eax >> 26 == 1 << bits - 1)
      }
      if isAMD {
        #expect(try #require(leaf(table, 0x8000_0001)).ecx >> 1 & 1 == (cpus > 1 ? 1 : 0))
        let core = try #require(leaf(table, 0x8000_001e))
        #expect((core.eax, core.ebx, core.ecx) == (UInt32(index), UInt32(index), 0))
      }
    }
  }

  /// Else Linux thinks that what one vCPU has in its cache is far from all others, and wakes everything on one.
  @Test(arguments: CPUIDFixture.all, [1, 2, 3, 4, 8]) func onlyTheLastLevelOfCaches_isShared(
    _ host: CPUIDFixture, cpus: Int
  ) throws {
    let caches = table(host, cpus: cpus).filter { [4, 0x8000_001d].contains($0.function) && $0.eax & 0x1f != 0 }
    let last = try #require(caches.map { $0.eax >> 5 & 7 }.max())
    #expect(caches.count >= 3 && last == (host.testDescription == "without XSAVE" ? 2 : 3))
    for cache in caches {
      let sharers = cache.eax >> 14 & 0xfff + 1
      let all = [1: 1, 2: 2, 3: 4, 4: 4, 8: 8][cpus]!
      #expect(sharers == (cache.eax >> 5 & 7 == last ? UInt32(all) : 1))
    }
  }

  @Test(arguments: [true, false]) func hypercalls_areOfferedWhereTheyWork(work: Bool) throws {
    let table = CPUID.table(
      supported: CPUIDFixture.software.entries, index: 0,
      machine: CPUID.Machine(cpus: 4, tscDeadline: true, tscKHz: 1_000_000, hypercalls: work))
    let shown = try #require(leaf(table, 0x4000_0001)).eax
    let needHypercalls: UInt32 = 1 << 7 | 1 << 11 | 1 << 13
    #expect(shown & needHypercalls == (work ? 0x0100_7efb & needHypercalls : 0))
    #expect(shown & (1 << 4 | 1 << 10 | 1 << 14) == 0, "asynchronous page faults")
  }

  /// What pairs compare is what guests are shown: a host that has more of what no guest sees is no other host.
  @Test func hiddenFeatures_areNoDifferenceOfAPair() {
    func processor(_ entries: [kvm_cpuid_entry2]) -> HostProcessor {
      HostProcessor(
        cpuid: CPUID.table(
          supported: entries, index: 0,
          machine: CPUID.Machine(cpus: 1, tscDeadline: true, tscKHz: 1, hypercalls: true)), stateSize: 4096)
    }
    var less = CPUIDFixture.intelServer.entries
    for index in less.indices {
      switch (less[index].function, less[index].index) {
      case (1, 0): less[index].ecx &= ~(1 << 5)
      case (7, 0): less[index].edx &= ~(1 << 24)
      case (0xd, 0): less[index].eax &= ~(3 << 17)
      default: break
      }
    }
    #expect(processor(less).lacks(of: processor(CPUIDFixture.intelServer.entries)) == nil)
    for index in less.indices where less[index].function == 0x4000_0001 { less[index].eax &= ~(1 << 3) }
    #expect(
      processor(less).lacks(of: processor(CPUIDFixture.intelServer.entries))
        == "CPUID leaf 0x40000001, EAX bits 0x8 are missing")
  }
}

extension MachineTests {
  @Suite struct ShownCPUIDTests {
    /// A vCPU of two shows its table, but where KVM adds the host's bits by itself.
    @Test(.enabled(if: (try? TinyGuest.cpuidCanHide(KVMSystem())) == true, "KVM shows the host's bits here"))
    func vcpu_showsItsTable() throws {
      let machine = try makeMachine([], cpus: 2, load: false)
      let shown = try machine.vcpus[1].cpuid()
      #expect(shown.first { $0.function == 1 }!.ecx & 1 << 5 == 0)
      #expect(shown.first { $0.function == 0x8000_0001 }!.ecx & 1 << 2 == 0)
      #expect(!shown.contains { $0.function == 0x8000_000a && $0.ebx != 0 })
    }

    @Test func hostProcessor_isWhatAMachinesVCPUShows() throws {
      let machine = try makeMachine([], load: false)
      let mine = HostProcessor(cpuid: try machine.vcpus[0].cpuid(), stateSize: machine.xsaveSize)
      #expect(try KVMSystem().hostProcessor() == mine)
    }
  }
}
