import Foundation
import Harness

// ./test --campaign calls this; its --help explains the options.
var campaign = Campaign()
var arguments = CommandLine.arguments.dropFirst()
func refuse(_ text: String) -> Never {
  FileHandle.standardError.write(Data("error: \(text); see ./test --help\n".utf8))
  exit(64)
}
while let name = arguments.popFirst() {
  if name == "--go-on" {
    campaign.goesOn = true
    continue
  }
  guard let value = arguments.popFirst() else { refuse("\(name) needs a value") }
  switch (name, value) {
  case ("--campaign", _):
    guard let rounds = Int(value), rounds > 0 else { refuse("--campaign takes a number of rounds, not '\(value)'") }
    campaign.rounds = rounds
  case ("--seed", _):
    guard let seed = UInt64(value) else { refuse("--seed takes a number, not '\(value)'") }
    campaign.seed = seed
  case ("--guest", _):
    guard let guest = GuestKind(rawValue: value) else { refuse("--guest takes lab or linux, not '\(value)'") }
    campaign.guest = guest
  case ("--mode", "remus"), ("--mode", "colo"), ("--mode", "colo++"): campaign.modes = [value]
  // Not in the help: holds nothing back, so that rounds must fail.
  case ("--mode", "none"): campaign.modes = [value]
  case ("--mode", "both"): break
  case ("--mode", _): refuse("--mode takes remus, colo, both or colo++, not '\(value)'")
  default: refuse("there is no option \(name)")
  }
}
guard Environment.isRoot, Environment.hasKVM else { refuse("a campaign needs root and /dev/kvm") }

// An interrupted campaign leaves no machine and no namespace.
let interrupted = DispatchSemaphore(value: 0)
let sources = [SIGINT, SIGTERM].map { number in
  signal(number, SIG_IGN)
  let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
  source.setEventHandler {
    interrupted.signal()
    Child.killAll()
  }
  source.resume()
  return source
}
var wasInterrupted = false
campaign.isInterrupted = {
  wasInterrupted = wasInterrupted || interrupted.wait(timeout: .now()) == .success
  return wasInterrupted
}
let failures = campaign.run()
exit(wasInterrupted ? 130 : failures.isEmpty ? 0 : 1)
