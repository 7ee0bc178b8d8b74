import Foundation
import Harness
import Testing

/// `capture.py` tells resets that a client could see from those that answer a duplicate.
@Suite struct Resets {
  /// Feeds segments of one or two connections to `Trails`: "c1:S" is a SYN of the client's port 1, "g2:R" a reset of the guest
  /// to its port 2.
  /// - Returns: for each reset whether its connection was over.
  private func judged(_ segments: String, address: String) throws -> String {
    let program = """
      import socket, struct, sys
      sys.path.insert(0, sys.argv[1])
      import capture
      address, six = sys.argv[2], ":" in sys.argv[2]
      trails = capture.Trails(address)
      own = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, address)
      other = bytes(len(own))
      def frame(text):
          sender, port, flag = text[0], int(text[1]), {"S": 2, "F": 1, "R": 4}[text[3]]
          ends, ports = ((own, other), (6379, port)) if sender == "g" else ((other, own), (port, 6379))
          head = bytes(8 if six else 12)
          head = bytes([0x60 if six else 0x45]) + head[1:] + b"".join(ends)
          return bytes(14) + head + struct.pack("!HH", *ports) + bytes(9) + bytes([flag]) + bytes(6)
      found = [trails.reset(frame(each), 0) for each in sys.argv[3].split()]
      print(*[each[1] for each in found if each])
      """
    let folder = Environment.root.appending(path: "Tests/Harness").path
    let outcome = try run("python3", ["-c", program, folder, address, segments])
    try #require(outcome.status == 0, "\(outcome.errors)")
    return outcome.output.trimmingCharacters(in: .whitespacesAndNewlines)
  }

  @Test(arguments: ["10.0.0.2", "fd00::2"]) func onlyAfterTheEndOfBothSides_nobodySeesIt(address: String) throws {
    #expect(try judged("c1:S g1:S g1:R", address: address) == "False")
    #expect(try judged("c1:S g1:S c1:F g1:R", address: address) == "False")
    #expect(try judged("c1:S g1:S g1:F g1:F g1:R", address: address) == "False")
    #expect(try judged("c1:S g1:S c1:F g1:F g1:F g1:R", address: address) == "True")
    #expect(try judged("c1:S c1:F g1:F c2:S g2:R g1:R", address: address) == "False True", "each connection by itself")
    #expect(try judged("c1:S c1:F g1:F c1:S g1:R", address: address) == "False", "the port is used again")
  }
}
