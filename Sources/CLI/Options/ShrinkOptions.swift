public import ArgumentParser
public import Pair

extension Shrink.Level: ExpressibleByArgument {}

/// How much of its host a secondary takes.
struct ShrinkOptions: ParsableArguments {
  @Option(
    help: "How the secondary's guest gets by with fewer CPUs: off, host (they share host CPUs) or guest (it is asked).")
  var shrink: Shrink.Level = .off

  @Option(help: ArgumentHelp("How many CPUs are left to it.", valueName: "number"))
  var shrinkTo = 1

  var value: Shrink { Shrink(level: shrink, target: shrinkTo) }

  func validate() throws {
    guard (1...8).contains(shrinkTo) else { throw ValidationError("--shrink-to takes 1 to 8, not \(shrinkTo)") }
  }
}
