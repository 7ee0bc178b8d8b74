import ArgumentParser
import Pair

/// Faults that tests ask for; see ``Fault``.
struct FaultOptions: ParsableArguments {
  @Option(
    help: ArgumentHelp(
      "A fault of this process, for tests; may be given more than once.", valueName: "point=action[:arg][@n]",
      visibility: .hidden),
    transform: { text in
      guard let fault = Fault(text) else {
        throw ValidationError(
          "'\(text)' is no fault; write POINT=ACTION[:ARG][@N] with POINT one of "
            + FaultPoint.allCases.map(\.rawValue).joined(separator: ", ")
            + " and ACTION one of kill, stop, cut, delay:MS, corrupt, short, fullDisk")
      }
      return fault
    })
  var fault: [Fault] = []
}
