import ArgumentParser
import Pair
import Replication

/// Where a running machine is asked.
struct ControlOptions: ParsableArguments {
  @Option(help: ArgumentHelp("Control socket of the machine (run --control PATH).", valueName: "path"))
  var control: String

  func ask(_ command: ControlRequest.Command) throws -> ControlReply {
    let reply = try ControlClient.send(ControlRequest(command: command), to: control)
    guard reply.ok else { throw Failure(reply.error ?? "the machine refused", .protocolError) }
    return reply
  }
}

struct StatusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Say how a running machine is, and its pair.",
    discussion: """
      EXAMPLES:
        minivmm status --control /run/vm.sock
        minivmm status --control /run/vm.sock --json
      The socket speaks JSON lines, for other programs: echo '{"command":"status"}' | nc -U /run/vm.sock
      """)

  @OptionGroup var machine: ControlOptions

  @Flag(help: "One line of JSON.")
  var json = false

  func run() throws {
    let reply = try machine.ask(.status)
    if json {
      print(String(decoding: ControlCodec.line(reply).dropLast(), as: UTF8.self))
    } else {
      for line in StatusText.lines(reply) { print(line) }
    }
  }
}

struct PauseCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pause", abstract: "Make a running machine stand still.",
    discussion: """
      A protected guest stays protected meanwhile.

      EXAMPLES:
        minivmm pause --control /run/vm.sock
      """)

  @OptionGroup var machine: ControlOptions

  func run() throws {
    let reply = try machine.ask(.pause)
    print("paused within \(StatusText.time((reply.pauseMilliseconds ?? 0) * 1000))")
  }
}

struct ResumeCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "resume", abstract: "Let a paused machine go on.",
    discussion: """
      EXAMPLES:
        minivmm resume --control /run/vm.sock
      """)

  @OptionGroup var machine: ControlOptions

  func run() throws { print(try machine.ask(.resume).state ?? "running") }
}

struct StopCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "stop", abstract: "End a running machine.",
    discussion: """
      Like pulling the plug: the guest is not asked. A secondary of the machine ends too, and does not take over; stopped
      itself, a secondary leaves its primary alone.

      EXAMPLES:
        minivmm stop --control /run/vm.sock
      """)

  @OptionGroup var machine: ControlOptions

  func run() throws { _ = try machine.ask(.stop) }
}

struct CheckpointCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "checkpoint", abstract: "Take a checkpoint of a protected guest now.",
    discussion: """
      Returns once the secondary has all of it.

      EXAMPLES:
        minivmm checkpoint --control /run/first.sock
      """)

  @OptionGroup var machine: ControlOptions

  func run() throws {
    let reply = try machine.ask(.checkpoint)
    print("the secondary has checkpoint \(reply.epoch ?? 0)")
  }
}

struct FailoverCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "failover", abstract: "Make the secondary of a pair take over now.",
    discussion: """
      Asked of either side. The primary hears of it, throws away what it held, and ends; clients keep their connections.

      EXAMPLES:
        minivmm failover --control /run/second.sock
      """)

  @OptionGroup var machine: ControlOptions

  func run() throws {
    let reply = try machine.ask(.failover)
    print(reply.pair?.role == .fenced ? "the secondary has taken over; this side ends" : "this side has taken over")
  }
}
