import Foundation
import Testing

@testable import Harness

@Suite struct AppendOnly {
  private static func command(_ words: String...) -> String {
    "*\(words.count)\r\n" + words.map { "$\($0.utf8.count)\r\n\($0)\r\n" }.joined()
  }

  private static let history = History([
    Operation(client: 0, number: 0, key: "key1", .set, argument: 1000, begin: 0, end: 1),
    Operation(client: 0, number: 1, key: "key1", .incr, result: 1001, begin: 2, end: 3),
    Operation(client: 0, number: 2, key: "blob0", .set, argument: 7, begin: 4, end: 5),
    Operation(client: 0, number: 3, key: "key1", .set, argument: 2000, begin: 6, end: nil),
    Operation(client: 1, number: 0, key: "mem1", .set, argument: 9, begin: 0, end: 1),
  ])
  private static let whole =
    command("SELECT", "0") + command("SET", "key1", "1000") + command("INCR", "key1")
    + command("SET", "blob0", "7:7:7:")

  private func failures(_ text: String) -> [String] {
    AppendOnlyCheck.check(file: Array(text.utf8), against: Self.history)
  }

  @Test func allThatWasAcknowledged_orMoreThatWasAskedFor() {
    #expect(failures(Self.whole) == [])
    #expect(failures(Self.whole + Self.command("SET", "key1", "2000")) == [])
    #expect(failures(Self.whole + "*3\r\n$3\r\nSET\r\n$4\r\nke") == [], "cut off in the middle")
  }

  @Test(arguments: [
    (command("SET", "key1", "1000") + command("SET", "blob0", "7:7:"), "increments"),
    (command("SET", "key1", "1000") + command("INCR", "key1"), "blob0: 7 was acknowledged"),
    (whole + command("SET", "key1", "3000"), "which nobody wrote"),
    (whole + command("INCR", "key1"), "2 increments"),
    (whole + command("SET", "other", "1"), "nobody wrote it"),
    (whole + command("DEL", "key1"), "nobody sent"),
  ]) func whatIsLostOrMadeUp_isSeen(text: String, failure: String) {
    let found = failures(text)
    #expect(found.count == 1 && found[0].contains(failure), "\(found)")
  }
}
