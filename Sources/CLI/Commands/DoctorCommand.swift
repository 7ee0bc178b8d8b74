import ArgumentParser
import MiniVMM

struct DoctorCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "doctor", abstract: "Say what this host offers and lacks.",
    discussion: """
      Opens /dev/kvm, asks for its capabilities and runs very small guests to see how KVM behaves here. Exit code 69 when
      something minivmm needs is missing.

      EXAMPLES:
        minivmm doctor
        minivmm doctor --kernel vmlinux
      """)

  @Option(help: ArgumentHelp("Also look at a guest's kernel file.", valueName: "file"))
  var kernel: String?

  func run() throws {
    var findings = HostProbe.run()
    if let kernel { findings.append(HostProbe.kernelFile(kernel)) }
    let width = findings.map(\.name.count).max() ?? 0
    for finding in findings {
      let padding = String(repeating: " ", count: width - finding.name.count)
      print("\(mark(finding.verdict)) \(finding.name)\(padding)  \(finding.text)")
      if let cure = finding.cure { print("        \(String(repeating: " ", count: width))  → \(cure)") }
    }
    let problems = findings.count { $0.verdict == .problem }
    if problems > 0 {
      throw Failure("\(problems) problem(s) found; the lines above name each with its cure", .unavailable)
    }
  }

  private func mark(_ verdict: Finding.Verdict) -> String {
    switch verdict {
    case .ok: "ok     "
    case .note: "note   "
    case .problem: "PROBLEM"
    }
  }
}
