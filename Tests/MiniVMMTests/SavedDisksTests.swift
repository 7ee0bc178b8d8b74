import Devices
import MiniVMM
import Testing

/// A restored machine gets the disks that it had, or is refused with the disk's name.
@Suite("Disks of a saved machine") struct SavedDisksTests {
  private static func disk(
    _ capacity: UInt64 = 1 << 20, isReadOnly: Bool = false, serial: String = "s", beginning: UInt32? = nil
  ) -> DiskIdentity {
    DiskIdentity(capacity: capacity, isReadOnly: isReadOnly, serial: Array(serial.utf8), beginning: beginning)
  }

  private static func check(_ saved: [DiskIdentity], _ here: [DiskIdentity]) throws -> [String] {
    try SavedDisks.check(saved, here.enumerated().map { ("path\($0)", $1) })
  }

  struct Case: Sendable {
    let saved: [DiskIdentity]
    let here: [DiskIdentity]
    let says: [String]
  }

  static let cases = [
    Case(saved: [disk(), disk()], here: [disk()], says: ["2 disks", "this one 1"]),
    Case(saved: [disk()], here: [disk(1 << 19)], says: ["disk 1, path0", "524288", "1048576", "same order"]),
    Case(saved: [disk(), disk(512)], here: [disk(), disk()], says: ["disk 2, path1", "1048576", "512"]),
    Case(saved: [disk()], here: [disk(isReadOnly: true)], says: ["disk 1", "read-only", "leave out ,ro"]),
    Case(saved: [disk(isReadOnly: true)], here: [disk()], says: ["disk 1", "writable", "add ,ro"]),
    Case(saved: [disk()], here: [disk(serial: "t")], says: ["disk 1", "'t'", "'s'"]),
    Case(
      saved: [disk(beginning: 1), disk(beginning: 2), disk(beginning: 3)],
      here: [disk(beginning: 1), disk(beginning: 3), disk(beginning: 2)],
      says: ["disk 2, path1", "holds what disk 3", "same order"]),
  ]

  @Test(arguments: cases) func others_areRefusedByName(example: Case) throws {
    let error = try #require(throws: SnapshotError.self) { _ = try Self.check(example.saved, example.here) }
    for text in example.says { #expect("\(error)".contains(text), "\(error)") }
  }

  @Test func own_areTaken() throws {
    let disks = [Self.disk(beginning: 1), Self.disk(beginning: nil), Self.disk(512, isReadOnly: true, beginning: 1)]
    #expect(try Self.check(disks, disks) == [])
    #expect(try Self.check([], []) == [])
    // What could not be read says nothing.
    #expect(try Self.check([Self.disk(beginning: 1)], [Self.disk(beginning: nil)]) == [])
  }

  @Test func changed_areNamed() throws {
    let saved = [Self.disk(beginning: 1), Self.disk(beginning: 2)]
    #expect(try Self.check(saved, [Self.disk(beginning: 1), Self.disk(beginning: 9)]) == ["path1"])
  }
}
