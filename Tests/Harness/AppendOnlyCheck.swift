import Foundation

/// Whether a Linux guest's disk holds what redis has acknowledged: with `appendfsync always` each write is in its file, and the
/// file flushed, before the client is told.
public struct AppendOnlyCheck {
  private static let file = "/var/lib/redis/appendonlydir/appendonly.aof.1.incr.aof"

  /// What is wrong, of a disk that nobody writes any more: a file system that its journal does not mend, an acknowledged write
  /// that the file lacks, and one that nobody asked for.
  /// - Parameter folder: for a copy of the disk and the file.
  public static func check(disk: URL, against history: History, in folder: URL) throws -> [String] {
    let (copy, file) = (folder.appending(path: "disk.copy").path, folder.appending(path: "append-only").path)
    defer { for path in [copy, file] { try? FileManager.default.removeItem(atPath: path) } }
    try run("cp", ["--sparse=always", disk.path, copy])
    // The first replays the journal, as a mount would.
    let mended = try run("e2fsck", ["-p", copy])
    let looked = try run("e2fsck", ["-fn", copy])
    guard [0, 1].contains(mended.status), looked.status == 0 else {
      return ["the file system is not whole: \(mended.output)\(mended.errors)\(looked.output)"]
    }
    let dumped = try run("debugfs", ["-R", "dump \(Self.file) \(file)", copy])
    guard let bytes = FileManager.default.contents(atPath: file), !bytes.isEmpty else {
      return ["no \(Self.file) on the disk: \(dumped.errors)"]
    }
    return check(file: Array(bytes), against: history)
  }

  /// As above, of the file's bytes: commands as redis gets them. A last one that is not whole was never acknowledged.
  static func check(file bytes: [UInt8], against history: History) -> [String] {
    var writes: [String: Set<Int>] = [:]
    var increments: [String: Int] = [:]
    var rest = bytes[...]
    while let words = command(&rest) {
      switch words.first?.uppercased() {
      case "SET" where words.count == 3: writes[words[1], default: []].insert(number(words[2]))
      case "INCR" where words.count == 2: increments[words[1], default: 0] += 1
      case "SELECT": break
      default: return ["the file has a command that nobody sent: \(words.prefix(3))"]
      }
    }
    var failures: [String] = []
    // memcached's keys are none of redis'.
    let operations = history.operations.filter { !$0.key.contains("mem") && $0.op != .get }
    for (key, operations) in Dictionary(grouping: operations, by: \.key).sorted(by: { $0.key < $1.key }) {
      let sets = operations.filter { $0.op == .set }
      let (asked, told) = (Set(sets.compactMap(\.argument)), Set(sets.filter { $0.end != nil }.compactMap(\.argument)))
      let written = writes.removeValue(forKey: key) ?? []
      if let lost = told.subtracting(written).min() {
        failures.append("\(key): \(lost) was acknowledged, and is not on the disk")
      }
      if let made = written.subtracting(asked).min() {
        failures.append("\(key): the disk has \(made), which nobody wrote")
      }
      let added = increments.removeValue(forKey: key) ?? 0
      let all = operations.filter { $0.op == .incr }
      let least = all.count { $0.end != nil }
      if added < least || added > all.count {
        failures.append("\(key): \(added) increments on the disk, \(least) acknowledged, \(all.count) asked for")
      }
    }
    failures += Set(writes.keys).union(increments.keys).sorted().map { "\($0) is on the disk, and nobody wrote it" }
    return failures
  }

  /// The number that a value stands for (`clients.py`); -1 for something else.
  private static func number(_ value: String) -> Int { Int(value.prefix { $0 != ":" }) ?? -1 }

  /// Takes one command from the front; nil when none is whole.
  private static func command(_ rest: inout ArraySlice<UInt8>) -> [String]? {
    guard let count = length(UInt8(ascii: "*"), &rest) else { return nil }
    var words: [String] = []
    for _ in 0..<count {
      guard let length = length(UInt8(ascii: "$"), &rest), rest.count >= length + 2 else { return nil }
      words.append(String(decoding: rest.prefix(length), as: UTF8.self))
      rest = rest.dropFirst(length + 2)
    }
    return words
  }

  private static func length(_ mark: UInt8, _ rest: inout ArraySlice<UInt8>) -> Int? {
    guard rest.first == mark, let end = rest.firstIndex(of: 13), rest.endIndex > end + 1 else { return nil }
    defer { rest = rest[(end + 2)...] }
    return Int(String(decoding: rest[(rest.startIndex + 1)..<end], as: UTF8.self))
  }
}
