import GuestMemory
import MiniVMM
import Testing

@testable import Pair

/// Whether a reply's bytes are the secondary's too. Each case is one that would let out what a survivor does not have.
@Suite("Source pages") struct SourcePagesTests {
  let memory: GuestMemory
  let pages: SourcePages
  private let stage = PageStage()

  init() throws {
    memory = try GuestMemory(size: 1 << 20)
    pages = SourcePages(memory)
  }

  private func synchronised(_ text: String, at address: UInt64) -> UInt64? {
    if case .since(let epoch) = (unsafe Array(text.utf8).withUnsafeBytes { unsafe pages.standing($0, at: address) }) {
      epoch
    } else {
      nil
    }
  }

  private func write(_ text: String, at address: UInt64) throws { try memory.write(Array(text.utf8), at: address) }

  /// A checkpoint's pause: which pages have changed, by the VMM's marks (the guest's log would say the same).
  private func cut(_ epoch: UInt64) throws {
    var dirty = PageSet(count: memory.pageCount)
    memory.dirty.harvest(into: &dirty)
    stage.removeAll()
    try stage.add(dirty, of: memory)
    pages.cut(epoch, changed: stage.pages)
  }

  private func checkpoint(_ epoch: UInt64) throws {
    try cut(epoch)
    pages.update(stage, epoch: epoch)
  }

  /// "hello" at 0x5000, known to be in checkpoint 2.
  private func prepare() throws {
    try write("hello world", at: 0x5000)
    try checkpoint(1)
    #expect(synchronised("hello", at: 0x5000) == nil, "nobody has asked for it before")
    try checkpoint(2)
    #expect(synchronised("hello", at: 0x5000) == 2)
  }

  @Test func unchanged_isSynchronised() throws {
    try prepare()
    try checkpoint(3)
    #expect(synchronised("hello", at: 0x5000) == 2)
    #expect(synchronised("world", at: 0x5006) == 2)
    #expect(synchronised("w0rld", at: 0x5006) == nil)
  }

  @Test func writtenInThisEpochAndReadBack_isNot() throws {
    try prepare()
    try write("HELLO", at: 0x5000)
    #expect(synchronised("HELLO", at: 0x5000) == nil)
    #expect(synchronised("world", at: 0x5006) == 2, "its neighbour in the page is")
  }

  @Test func changedInTheCheckpointOnItsWay_isOfThatOne() throws {
    try prepare()
    try write("HELLO", at: 0x5000)
    try checkpoint(3)
    #expect(synchronised("HELLO", at: 0x5000) == 3)
    #expect(synchronised("world", at: 0x5006) == 2, "what has not changed is with the secondary already")
    #expect(synchronised("hello", at: 0x5000) == nil)
  }

  /// Between the cut and the look at what was cut nothing is known of a changed page.
  @Test func cutAndNotYetSeen_isNot() throws {
    try prepare()
    try write("HELLO", at: 0x5000)
    try cut(3)
    #expect(synchronised("HELLO", at: 0x5000) == nil)
    #expect(synchronised("world", at: 0x5006) == nil)
    pages.update(stage, epoch: 3)
    #expect(synchronised("HELLO", at: 0x5000) == 3)
  }

  /// The reply was made of the old bytes, and those leave: it does not matter what the page is now.
  @Test func dirtiedBetweenSubmitAndLookUp_countsByItsBytes() throws {
    try prepare()
    try write("HELLO", at: 0x5000)
    #expect(synchronised("hello", at: 0x5000) == 2)
  }

  /// It was copied while it was being written: what counts is what the checkpoint has.
  @Test func copiedInTheEpochInWhichItChanges_isTakenFromTheCheckpoint() throws {
    try write("old", at: 0x7000)
    try checkpoint(1)
    #expect(synchronised("old", at: 0x7000) == nil)
    try write("new", at: 0x7000)
    try checkpoint(2)
    #expect(synchronised("old", at: 0x7000) == nil)
    #expect(synchronised("new", at: 0x7000) == 2)
  }

  /// Asked for between a cut and the look at it: that look is not of this page's epoch.
  @Test func askedForBetweenCutAndUpdate_waitsForTheNext() throws {
    try write("one", at: 0x7000)
    try cut(1)
    try write("two", at: 0x7000)
    #expect(synchronised("two", at: 0x7000) == nil)
    pages.update(stage, epoch: 1)
    #expect(synchronised("one", at: 0x7000) == nil && synchronised("two", at: 0x7000) == nil)
    try checkpoint(2)
    #expect(synchronised("two", at: 0x7000) == 2)
  }

  @Test func acrossPages_isOfTheLater() throws {
    try write("abcdef", at: 0x8ffd)
    try checkpoint(1)
    #expect(synchronised("abcdef", at: 0x8ffd) == nil)
    try checkpoint(2)
    #expect(synchronised("abcdef", at: 0x8ffd) == 2)
    try write("x", at: 0x9000)
    try checkpoint(3)
    #expect(synchronised("abcxef", at: 0x8ffd) == 3)
  }

  /// A secondary finds the same change, but knows nothing of what is not known here.
  @Test func changed_outweighsUnknown() throws {
    try write("abcdef", at: 0x8ffd)
    try checkpoint(1)
    _ = synchronised("abc", at: 0x8ffd)
    try checkpoint(2)
    func standing(_ text: String) -> Standing {
      unsafe Array(text.utf8).withUnsafeBytes { unsafe pages.standing($0, at: 0x8ffd) }
    }
    #expect(standing("abcdef") == .unknown)
    #expect(standing("xbcdef") == .changed)
    try checkpoint(3)
    #expect(standing("abcxef") == .changed)
    #expect(standing("abcdef") == .since(3))
  }

  @Test func twoPagesOfOnePlace_takeTurns() throws {
    let few = SourcePages(memory, bytes: 4096)
    func synchronised(_ address: UInt64) -> Standing {
      unsafe [0].withUnsafeBytes { unsafe few.standing(UnsafeRawBufferPointer(rebasing: $0[..<1]), at: address) }
    }
    for epoch in 1...4 as ClosedRange<UInt64> {
      let address = epoch % 2 * 0x1000
      #expect(synchronised(address) == .unknown)
      few.cut(epoch, changed: [])
      #expect(synchronised(address) == .since(epoch))
    }
  }

  @Test func anotherSecondary_beginsAnew() throws {
    try prepare()
    pages.removeAll()
    #expect(synchronised("hello", at: 0x5000) == nil)
  }

  @Test func outsideRAM_isNot() {
    for address in [1 << 20, (1 << 20) - 2, .max - 1] as [UInt64] { #expect(synchronised("hello", at: address) == nil) }
    #expect(synchronised("", at: 0x5000) == 0, "nothing depends on nothing")
  }
}
