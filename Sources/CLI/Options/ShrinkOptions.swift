public import ArgumentParser
public import Pair

extension Shrink.Level: ExpressibleByArgument {}

/// How much of its host a secondary takes.
struct ShrinkOptions: ParsableArguments {
  @Option(
    help: "How the secondary's guest gets by with fewer CPUs: off, host (they share host CPUs) or guest (it is asked).")
  var shrink: Shrink.Level = .off

  @Option(
    help: ArgumentHelp("How many CPUs are left to it, or auto: as few as nobody has to wait for.", valueName: "number"))
  var shrinkTo = ShrinkTarget(cpus: 1)

  var value: Shrink { Shrink(level: shrink, target: shrinkTo.cpus) }
}

/// 1 to 8, or auto.
struct ShrinkTarget: ExpressibleByArgument, CustomStringConvertible {
  var cpus: Int?

  init(cpus: Int?) { self.cpus = cpus }

  init?(argument: String) {
    if argument == "auto" { return }
    guard let number = Int(argument), (1...8).contains(number) else { return nil }
    cpus = number
  }

  var description: String { cpus.map(String.init) ?? "auto" }
  var defaultValueDescription: String { description }
}
