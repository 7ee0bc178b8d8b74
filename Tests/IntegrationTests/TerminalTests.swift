import Foundation
import Harness
import Testing

extension Integration {
  /// The terminal is restored at every kind of end, and left alone while another process group has it.
  @Suite(
    "Terminal", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3)))
  struct Terminal {
    let folder = TestFolder()

    func machine(_ more: [String] = []) throws -> [String] {
      let disk = folder.path("disk")
      #expect(FileManager.default.createFile(atPath: disk, contents: Data(count: 1 << 20)))
      return [
        Environment.minivmm, "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=idle",
        "--disk", disk,
      ] + more
    }

    func start(_ arguments: [String], foreground: Bool = true) throws -> (Job, before: [UInt8]) {
      // The program is started by a shell's job that first lets us see the modes.
      let job = try Job(["sh", "-c", "read line; exec \"$@\"", "sh"] + arguments, foreground: foreground)
      let before = job.modes
      job.type("\n")
      return (job, before)
    }

    static let threads = ["main", "vcpu0", "devices", "disk"]

    /// A thread of that name; main is the first.
    func thread(_ name: String, of job: Job) throws -> ProcessThreads.Thread {
      let threads = ProcessThreads.of(job.identifier)
      return try #require(threads.first { name == "main" ? $0.identifier == job.identifier : $0.name == name })
    }

    @Test(arguments: threads, ProcessThreads.Disturbance.allCases)
    func modesComeBack_andTheCauseIsNamed(thread name: String, how: ProcessThreads.Disturbance) throws {
      let (job, before) = try start(machine())
      try job.wait(for: "lab: ready", timeout: 20)
      #expect(job.isRaw)
      // The main thread loads its filter once the guest runs.
      #expect(waitUntil { ProcessThreads.of(job.identifier).allSatisfy { $0.status["Seccomp"] == "2" } })
      let thread = try self.thread(name, of: job)
      try ProcessThreads.disturb(thread, how)
      let status = job.waitForExit()
      #expect(job.modes == before, "\(job.output)")
      #expect(status == (how == .deniedCall ? 159 : -SIGSEGV), "\(job.output)")
      let cause = how == .deniedCall ? "its seccomp filter denied system call mount (165)" : "ended by SIGSEGV"
      #expect(waitUntil { job.output.contains("minivmm: thread \(thread.name): \(cause)") }, "\(job.output)")
      #expect(how == .deniedCall || !job.output.contains("seccomp"), "\(job.output)")
    }

    @Test(arguments: threads, [SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV, SIGQUIT, SIGUSR1, SIGSYS])
    func modesComeBack_afterASignal(thread name: String, number: Int32) throws {
      let (job, before) = try start(machine())
      try job.wait(for: "lab: ready", timeout: 20)
      let thread = try self.thread(name, of: job)
      ProcessThreads.signal(job.identifier, thread, number)
      #expect(job.waitForExit() == -number, "\(job.output)")
      #expect(job.modes == before)
      #expect(waitUntil { job.output.contains("minivmm: ended by SIG") }, "\(job.output)")
    }

    @Test(arguments: [SIGTERM, SIGINT, SIGHUP]) func modesComeBack_afterAnOrderlyEnd(number: Int32) throws {
      let (job, before) = try start(machine())
      try job.wait(for: "lab: ready", timeout: 20)
      job.signal(number)
      #expect(job.waitForExit() == 0)
      #expect(job.modes == before)
    }

    /// As `nohup` starts it: the end of the terminal's session is not its.
    @Test func ignoredHangUp_isIgnored() throws {
      let arguments = try machine()
      let (job, _) = try start(["sh", "-c", "trap '' HUP; exec \"$@\"", "sh"] + arguments)
      try job.wait(for: "lab: ready", timeout: 20)
      job.signal(SIGHUP)
      #expect(staysTrue(for: 1) { ProcessThreads.of(job.identifier).contains { $0.name == "vcpu0" } })
      job.signal(SIGTERM)
      #expect(job.waitForExit() == 0)
    }

    /// In the background it runs, leaves the terminal alone, and ends when it is told; in the foreground it takes the terminal.
    @Test(arguments: ["run", "pair"]) func background_runsWithoutTheTerminal(command: String) throws {
      var arguments = try machine()
      arguments[1] = command
      if command == "pair" { arguments += ["--secondary-disk", folder.path("copy")] }
      let (job, before) = try startInBackground(arguments)
      try job.wait(for: "lab: ready", timeout: 30)
      // What is typed is the shell's.
      job.type("x\n")
      let time = ProcessThreads.cpuTime(of: job.identifier)
      #expect(staysTrue(for: 1) { !job.isStopped && job.modes == before })
      #expect(command == "pair" || ProcessThreads.cpuTime(of: job.identifier) - time < 0.5)
      job.bring(toForeground: true)
      #expect(waitUntil { job.isRaw })
      job.bring(toForeground: false)
      job.bring(toForeground: true)
      job.type("\u{1d}")
      #expect(job.waitForExit() == 0, "Ctrl-] ends it: \(job.output)")
      #expect(job.modes == before)
    }

    @Test func background_endsOnSIGTERM() throws {
      let (job, before) = try startInBackground(machine())
      try job.wait(for: "lab: ready", timeout: 20)
      job.signal(SIGTERM)
      #expect(job.waitForExit() == 0, "\(job.output)")
      #expect(job.modes == before)
    }

    @Test func secondary_inTheBackground_endsOnSIGTERM() throws {
      let key = folder.path("key")
      try makeKey(key)
      let (job, before) = try startInBackground([
        Environment.minivmm, "secondary", "--listen", "127.0.0.1:0", "--key", key,
      ])
      try job.wait(for: "waiting for a primary", timeout: 20)
      #expect(staysTrue(for: 0.5) { !job.isStopped && job.modes == before })
      job.signal(SIGTERM)
      #expect(job.waitForExit() == 0, "\(job.output)")
    }

    /// Stopped, its terminal set by the shell, and continued: raw again, and what the shell had set comes back at the end.
    @Test func stoppedAndContinued_takesTheTerminalAgain() throws {
      let (job, before) = try start(machine())
      try job.wait(for: "lab: ready", timeout: 20)
      #expect(waitUntil { job.isRaw })
      job.signal(SIGSTOP)
      #expect(waitUntil { job.isStopped })
      job.bring(toForeground: false)
      job.modes = before
      job.bring(toForeground: true)
      job.signal(SIGCONT)
      #expect(waitUntil { job.isRaw })
      job.signal(SIGTERM)
      #expect(job.waitForExit() == 0)
      #expect(job.modes == before)
    }

    private func startInBackground(_ arguments: [String]) throws -> (Job, before: [UInt8]) {
      let job = try Job(["sh", "-c", "sleep 0.3; exec \"$@\"", "sh"] + arguments, foreground: false)
      return (job, job.modes)
    }
  }
}
