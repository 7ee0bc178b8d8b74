import ArgumentParser

@main
struct MiniVMMCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "minivmm", abstract: "A minimal hypervisor on /dev/kvm.")
}
