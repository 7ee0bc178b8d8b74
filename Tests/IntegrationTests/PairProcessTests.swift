import Foundation
import Harness
import Testing

/// `minivmm pair`: both sides as its children.
extension Integration.PairCommands {
  @Test(arguments: [0, 1]) func pair_goesOnWithTheOtherSide(killed: Int) throws {
    let guest = try pair()
    try inStep(guest)
    // In the order in which they were started: the secondary, the primary.
    let processes = children(of: guest)
    try #require(processes.count == 2)
    let client = try space.connect(port: 6379)
    try count(on: client, 1...60, moment: 30) { kill(processes[killed], SIGKILL) }
    let survivor = killed == 1 ? second : first
    #expect(try pairStatus(survivor)["role"] as? String == "alone")
    #expect(try ask("stop", survivor).status == 0)
    #expect(try guest.waitForExit() == 0)
    #expect(!processes.contains(where: isAlive))
    #expect(guest.console.contains("primary: minivmm: pair:") && guest.console.contains("secondary: minivmm: pair:"))
    // What the sides say may come in the middle of a line of the guest's.
    let console = guest.console.replacing(/(primary|secondary): minivmm: [^\n]*\n/, with: "")
    #expect(console.components(separatedBy: "lab: ready").count == 2, "one console at a time: \(guest.console)")
  }

  /// The secondary's guest leaves its CPUs idle, load after load, and has all of them when it serves.
  @Test func shrunkSecondary_hasAllCPUsAfterTheTakeover() throws {
    let guest = try Guest(
      [
        "pair", "--kernel", Environment.labGuest, "--memory", "64M", "--cpus", "3", "--cmdline",
        cmdline("kv,burn") + " burn=seconds:100", "--net", "tap=tap0", "--secondary-net", "tap=tap1", "--control",
        first,
        "--secondary-control", second, "--mode", "colo++", "--shrink", "guest",
      ], in: space)
    try inStep(guest)
    let client = try space.connect(port: 6379)
    #expect(try waitUntil { try pairStatus(second)["activeCPUs"] as? Int == 1 })
    let loaded = try pairStatus(second)["loaded"] as? Int ?? 0
    try count(on: client, 1...10)
    #expect(try waitUntil { try pairStatus(second)["loaded"] as? Int ?? 0 > loaded + 2 })
    #expect(try waitUntil { try pairStatus(second)["activeCPUs"] as? Int == 1 })
    #expect(try pairStatus(first)["activeCPUs"] as? Int == 3, "the primary's guest is asked for nothing")
    let processes = children(of: guest)
    try #require(processes.count == 2)
    try count(on: client, 11...30, moment: 20) { kill(processes[1], SIGKILL) }
    #expect(try waitUntil { try pairStatus(second)["activeCPUs"] as? Int == 3 })
    #expect(try pairStatus(second)["role"] as? String == "alone")
  }

  /// The host CPUs that a process's vCPU threads may run on, as Linux lists them; a list each.
  private func hostCPUs(_ process: Int32) -> [String] {
    let tasks = "/proc/\(process)/task"
    return ((try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? []).compactMap { task in
      guard let name = try? String(contentsOfFile: "\(tasks)/\(task)/comm", encoding: .utf8), name.hasPrefix("vcpu")
      else { return nil }
      return allowedCPUs("\(tasks)/\(task)")
    }
  }

  private func allowedCPUs(_ task: String) -> String? {
    let status = (try? String(contentsOfFile: "\(task)/status", encoding: .utf8)) ?? ""
    return status.firstMatch(of: /Cpus_allowed_list:\s*(\S+)/).map { String($0.1) }
  }

  /// The nice values of a process's threads, by name.
  private func niceValues(_ process: Int32) -> [String: Int] {
    let tasks = "/proc/\(process)/task"
    var values: [String: Int] = [:]
    for task in (try? FileManager.default.contentsOfDirectory(atPath: tasks)) ?? [] {
      guard let stat = try? String(contentsOfFile: "\(tasks)/\(task)/stat", encoding: .utf8),
        let match = stat.firstMatch(of: /\((.*)\) (.*)/)
      else { continue }
      // Field 19 of all (proc_pid_stat(5)).
      values[String(match.1)] = Int(match.2.split(separator: " ")[16])
    }
    return values
  }

  /// On a host with fewer CPUs than its guests want, a side that answers the other only in its turn would seem dead to it.
  @Test func whatTheOtherSideWaitsFor_goesBeforeTheGuests() throws {
    let guest = try pair(["--mode", "colo"])
    try inStep(guest)
    let processes = children(of: guest)
    try #require(processes.count == 2)
    for (process, threads) in zip(processes, [["pair-follow", "pair-load"], ["pair"]]) {
      // Each thread sets its own value once it runs.
      for thread in threads {
        #expect(
          waitUntil {
            let values = niceValues(process)
            guard let own = values[thread], let guests = values["vcpu0"] else { return false }
            return own < guests
          }, "\(thread): \(niceValues(process))")
      }
    }
  }

  @Test(.enabled(if: ProcessInfo.processInfo.activeProcessorCount > 1, "one CPU can't be shared any more than it is"))
  func hostShrunkSecondary_sharesOneHostCPU_andHasAllAfterTheTakeover() throws {
    let guest = try Guest(
      [
        "pair", "--kernel", Environment.labGuest, "--memory", "64M", "--cpus", "2", "--cmdline",
        cmdline("kv,burn") + " burn=seconds:100", "--net", "tap=tap0", "--secondary-net", "tap=tap1", "--control",
        first, "--secondary-control", second, "--mode", "colo", "--shrink", "host", "--shrink-to", "1",
      ], in: space)
    try inStep(guest)
    let client = try space.connect(port: 6379)
    let processes = children(of: guest)
    try #require(processes.count == 2)
    let all = try #require(allowedCPUs("/proc/self"))
    #expect(
      waitUntil {
        let lists = hostCPUs(processes[0])
        return lists.count == 2 && Set(lists).count == 1 && Int(lists[0]) != nil
      }, "\(hostCPUs(processes[0]))")
    #expect(hostCPUs(processes[1]) == [all, all], "the primary's are left alone")
    let loaded = try pairStatus(second)["loaded"] as? Int ?? 0
    try count(on: client, 1...10)
    #expect(try waitUntil(seconds: 10) { try pairStatus(second)["loaded"] as? Int ?? 0 > loaded + 2 })
    #expect(hostCPUs(processes[0]).allSatisfy { Int($0) != nil }, "load after load")
    try count(on: client, 11...30, moment: 20) { kill(processes[1], SIGKILL) }
    #expect(waitUntil(seconds: 10) { hostCPUs(processes[0]) == [all, all] }, "\(hostCPUs(processes[0]))")
    #expect(try pairStatus(second)["role"] as? String == "alone")
  }

  @Test(arguments: [SIGTERM, SIGINT, SIGKILL]) func pair_leavesNoChild(signal: Int32) throws {
    let guest = try pair()
    try inStep(guest)
    let processes = children(of: guest)
    try #require(processes.count == 2)
    guest.signal(signal)
    #expect(try guest.waitForExit() == (signal == SIGKILL ? -SIGKILL : 0))
    #expect(waitUntil(seconds: 5) { !processes.contains(where: isAlive) })
    if signal != SIGKILL { #expect(!guest.console.contains("takingOver")) }
  }

  @Test(arguments: [("poweroff", Int32(0)), ("reset", 10), ("panic", 11)])
  func pair_endsWithTheGuest(service: String, status: Int32) throws {
    let guest = try Guest([
      "pair", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", cmdline(service),
    ])
    #expect(try guest.waitForExit() == status, "\(guest.console)")
  }

  @Test func pair_asAnotherUser_failsOver_andLeavesNoChild() throws {
    let guest = try pair(["--user", "nobody"])
    try inStep(guest)
    let processes = children(of: guest)
    let client = try space.connect(port: 6379)
    try count(on: client, 1...40, moment: 20) { try #require(try ask("failover", second).status == 0) }
    #expect(try ask("checkpoint", second).errors.contains("there is no secondary"))
    guest.signal(SIGKILL)
    _ = try guest.waitForExit()
    #expect(waitUntil(seconds: 5) { !processes.contains(where: isAlive) })
  }

  @Test func pair_makesTheSecondarysDisk() throws {
    let (disk, copy) = (folder.path("disk"), folder.path("copy"))
    let contents = Data((0..<(1 << 20)).map { UInt8(truncatingIfNeeded: $0 / 512) })
    #expect(FileManager.default.createFile(atPath: disk, contents: contents))
    let guest = try pair(["--disk", disk, "--secondary-disk", copy])
    try inStep(guest)
    guest.signal(SIGTERM)
    #expect(try guest.waitForExit() == 0)
    #expect(FileManager.default.contents(atPath: copy) == contents)
  }
}
