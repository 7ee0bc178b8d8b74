import ArgumentParser

struct ControlCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "control", abstract: "Ask a running machine: status, pause, resume, stop.",
    discussion: """
      EXAMPLES:
        minivmm control status --control /run/vm.sock
        minivmm control pause --control /run/vm.sock
      The socket speaks JSON lines, for other programs: echo '{"command":"status"}' | nc -U /run/vm.sock
      """)

  enum Verb: String, ExpressibleByArgument, CaseIterable {
    case status, pause, resume, stop
  }

  @Argument(help: "status, pause, resume or stop.")
  var verb: Verb

  @Option(help: "Control socket of the machine (run --control PATH).")
  var control: String

  func run() throws {
    guard let command = ControlRequest.Command(rawValue: verb.rawValue) else { return }
    let reply = try ControlClient.send(ControlRequest(command: command), to: control)
    guard reply.ok else { throw Failure(reply.error ?? "the machine refused", .protocolError) }
    print(String(decoding: ControlCodec.line(reply).dropLast(), as: UTF8.self))
  }
}
