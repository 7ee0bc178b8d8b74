import Testing

@testable import MiniVMM

@Suite("Host processor") struct HostProcessorTests {
  private func processor(_ change: (inout [UInt32]) -> Void = { _ in }, stateSize: UInt32 = 4096) -> HostProcessor {
    var features = [UInt32](repeating: 0x00ff_00ff, count: HostProcessor.words.count)
    change(&features)
    return HostProcessor(features: features, stateSize: stateSize)
  }

  @Test func sameOrMore_lacksNothing() {
    #expect(processor().lacks(of: processor()) == nil)
    #expect(processor { $0[3] |= 1 << 31 }.lacks(of: processor()) == nil)
  }

  @Test func missingBit_isNamed() {
    let lack = processor().lacks(of: processor { $0[2] |= 1 << 9 })
    #expect(lack?.contains("leaf 0x7, EBX bits 0x200") == true)
    #expect(processor(stateSize: 8192).lacks(of: processor())?.contains("8192") == true)
  }

  @Test func encoded_decodesToTheSame_andNothingElseDoes() throws {
    let one = processor { $0[10] = 7 }
    #expect(try HostProcessor(decoding: one.encoded) == one)
    for count in 0..<one.encoded.count {
      #expect(throws: (any Error).self) { try HostProcessor(decoding: Array(one.encoded[..<count])) }
    }
    #expect(throws: (any Error).self) { try HostProcessor(decoding: one.encoded + [0]) }
  }
}
