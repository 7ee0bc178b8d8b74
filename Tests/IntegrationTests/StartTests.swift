import Foundation
import Harness
import Testing

extension Integration {
  /// Options by command: users, filters, configuration files, cards.
  @Suite(
    "Start", .enabled(if: Environment.hasLab && Environment.isRoot, "needs root, /dev/kvm and the lab guest"),
    .timeLimit(.minutes(3)))
  struct Start {
    let folder = TestFolder()
    let space: Namespace

    init() throws { space = try Namespace(taps: ["tap0", "tap1", "tap2"], bridged: true) }

    func disk(_ name: String) -> String {
      let path = folder.path(name)
      if !FileManager.default.fileExists(atPath: path) {
        #expect(FileManager.default.createFile(atPath: path, contents: Data(count: 1 << 20)))
      }
      return path
    }

    func boot(_ service: String = "kv") -> [String] {
      ["--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=\(service) ip=\(Namespace.guest)/24"]
    }

    /// Two disks, a card and a control socket, as another user.
    func full(_ name: String, tap: String) -> [String] {
      [
        "--disk", disk("\(name)0"), "--disk", disk("\(name)1"), "--net", "tap=\(tap)", "--control",
        folder.path("\(name).sock"), "--user", "nobody", "--seccomp", "kill",
      ]
    }

    /// Everybody else of a process: other users, or threads without a filter.
    func expectRestricted(_ process: Int32, _ names: Set<String>) {
      var threads = ProcessThreads.of(process)
      #expect(
        waitUntil {
          threads = ProcessThreads.of(process)
          return threads.allSatisfy { $0.status["Seccomp"] == "2" } && names.isSubset(of: Set(threads.map(\.name)))
        }, "\(threads.map { ($0.name, $0.status["Seccomp"] ?? "") })")
      for thread in threads {
        #expect(thread.status["Uid"]?.split(separator: "\t") == ["65534", "65534", "65534", "65534"], "\(thread.name)")
        #expect(thread.status["Groups"] ?? "" == "", "\(thread.name)")
        #expect(thread.status["CapPrm"] == "0000000000000000", "\(thread.name)")
        #expect(thread.status["NoNewPrivs"] == "1", "\(thread.name)")
      }
    }

    func stop(_ guest: Guest, _ control: String) throws {
      #expect(try run(Environment.minivmm, ["stop", "--control", control]).status == 0)
      #expect(try guest.waitForExit() == 0, "\(guest.console)")
    }

    @Test func run_asAnotherUser_withDisks() throws {
      let guest = try Guest(["run"] + boot() + full("a", tap: "tap0"), in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "ping"]) == "PONG\n")
      expectRestricted(guest.identifier, ["vcpu0", "devices", "disk"])
      try stop(guest, folder.path("a.sock"))
    }

    @Test func restore_asAnotherUser_withDisks() throws {
      let first = try Guest(["run"] + boot() + full("a", tap: "tap0"), in: space)
      try first.wait(for: "lab: ready", timeout: 20)
      try Snapshot.snapshot(folder.path("a.sock"), to: folder.path("snapshot"), stayPaused: true)
      first.signal(SIGKILL)
      _ = try first.waitForExit()
      let guest = try Guest(["restore", folder.path("snapshot")] + full("a", tap: "tap0"), in: space)
      #expect(try waitUntil(seconds: 20) { try space.connect(port: 6379).exchange("PING\r\n", expecting: "+PONG\r\n") })
      expectRestricted(guest.identifier, ["vcpu0", "devices", "disk"])
      try stop(guest, folder.path("a.sock"))
    }

    @Test(arguments: ["remus", "colo"]) func primaryAndSecondary_asAnotherUser_withDisks(mode: String) throws {
      let key = folder.path("key")
      try makeKey(key)
      let second = try Guest(
        ["secondary", "--listen", "127.0.0.1:7000", "--key", key] + full("b", tap: "tap1"), in: space)
      try second.wait(for: "waiting for a primary", timeout: 20)
      let first = try Guest(
        ["primary", "--replicate", "127.0.0.1:7000", "--key", key, "--mode", mode] + boot() + full("a", tap: "tap0"),
        in: space)
      try first.wait(for: "pair: now primary", timeout: 30)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "set", "k", "v"]) == "OK\n")
      expectRestricted(first.identifier, ["vcpu0", "devices", "disk", "pair"])
      // Its main thread has no machine to control before the takeover, and no filter.
      first.signal(SIGKILL)
      try second.wait(for: "now alone", timeout: 20)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"]) == "v\n")
      expectRestricted(second.identifier, ["vcpu0", "devices", "disk"])
      try stop(second, folder.path("b.sock"))
    }

    @Test func pair_asAnotherUser_withDisks() throws {
      let guest = try Guest(
        ["pair"] + boot() + full("a", tap: "tap0") + [
          "--secondary-net", "tap=tap1", "--secondary-disk", disk("b0"), "--secondary-disk", disk("b1"),
        ], in: space)
      try guest.wait(for: "pair: now primary", timeout: 30)
      let processes = ProcessThreads.children(of: guest.identifier)
      #expect(processes.count == 2)
      for process in processes {
        for thread in ProcessThreads.of(process) {
          #expect(thread.status["Uid"]?.hasPrefix("65534\t65534") == true, "\(thread.name)")
        }
      }
      try stop(guest, folder.path("a.sock"))
    }

    /// glibc gives each thread that allocates an arena of its own, and from the ninth on counts the CPUs: which filters deny a thread
    /// that allocates for the first time behind its own.
    @Test func manyThreads_shareArenas() throws {
      let disks = (0..<4).flatMap { ["--disk", disk("many\($0)")] }
      let guest = try Guest(["run", "--cpus", "8", "--net", "tap=tap0"] + disks + boot(), in: space)
      try guest.wait(for: "lab: ready", timeout: 30)
      _ = try space.inside(
        "redis-benchmark", ["-h", Namespace.guest, "-c", "20", "-P", "4", "-n", "5000", "-t", "set,get", "--csv"],
        timeout: 60)
      #expect(ProcessThreads.of(guest.identifier).count > 20)
      // The main thread's arena has no heap of this kind.
      #expect((1...7).contains(ProcessThreads.mallocHeaps(of: guest.identifier)))
      #expect(guest.isRunning, "\(guest.console)")
    }

    // MARK: Configuration file

    func config(_ text: String) throws -> String {
      let path = folder.path("config.json")
      try Data(text.utf8).write(to: URL(filePath: path))
      return path
    }

    func isFiltered(_ guest: Guest) -> Bool {
      ProcessThreads.of(guest.identifier).contains { $0.name == "vcpu0" && $0.status["Seccomp"] == "2" }
    }

    /// What the command line says is not a default, even where it says the same.
    @Test func commandLine_winsOverTheFile_alsoWithWhatWouldBeTheDefault() throws {
      let file = try config(
        """
        {"kernel": "\(Environment.labGuest)", "cmdline": "service=panic", "boot": "pvh", "cpus": 2, "memory": "32M",
         "seccomp": "off", "console": "none", "user": "nobody", "control": "\(folder.path("file.sock"))"}
        """)
      let control = folder.path("line.sock")
      let guest = try Guest([
        "run", "--config", file, "--cmdline", "service=idle", "--boot", "auto", "--cpus", "1", "--memory", "128M",
        "--seccomp", "kill", "--console", "stdio", "--user", "root", "--control", control,
      ])
      try guest.wait(for: "lab: ready", timeout: 20)
      #expect(waitUntil { isFiltered(guest) })
      let status = try run(Environment.minivmm, ["status", "--control", control]).output
      #expect(status.contains("1 CPU, 128") && !status.contains("CPUs"), "\(status)")
      #expect(ProcessThreads.of(guest.identifier).allSatisfy { $0.status["Uid"]?.hasPrefix("0\t0") == true })
      try stop(guest, control)
    }

    @Test(arguments: ["run", "restore", "primary", "secondary"]) func file_isReadByEveryCommand(command: String) throws
    {
      let (control, console, key) = (folder.path("file.sock"), folder.path("console"), folder.path("key"))
      try makeKey(key)
      let file = try config(
        """
        {"kernel": "\(Environment.labGuest)", "cmdline": "service=idle", "cpus": 1, "memory": "64M",
         "disks": [{"path": "\(disk("d"))"}], "nets": [{"tap": "tap0"}], "seccomp": "off", "user": "nobody",
         "console": "file=\(console)", "control": "\(control)"}
        """)
      if command == "restore" {
        let first = try Guest(["run", "--config", file], in: space)
        #expect(
          waitUntil(seconds: 20) {
            (try? String(contentsOfFile: console, encoding: .utf8))?.contains("lab: ready") == true
          })
        try Snapshot.snapshot(control, to: folder.path("snapshot"), stayPaused: true)
        try stop(first, control)
      }
      let more = [
        "run": [], "restore": [folder.path("snapshot")], "primary": ["--replicate", "127.0.0.1:7000", "--key", key],
        "secondary": ["--listen", "127.0.0.1:7000", "--key", key],
      ]
      let guest = try Guest([command] + more[command, default: []] + ["--config", file], in: space)
      #expect(
        try waitUntil(seconds: 20) { try run(Environment.minivmm, ["status", "--control", control]).status == 0 })
      #expect(
        waitUntil { ProcessThreads.of(guest.identifier).allSatisfy { $0.status["Uid"]?.hasPrefix("65534\t") == true } })
      #expect(!ProcessThreads.of(guest.identifier).contains { $0.status["Seccomp"] == "2" })
      if command == "run" || command == "primary" {
        #expect(
          waitUntil(seconds: 20) {
            (try? String(contentsOfFile: console, encoding: .utf8))?.contains("lab: ready") == true
          })
      }
      try stop(guest, control)
    }

    @Test(arguments: [
      (#"{"nets": [{"tap": "tap0", "mca": "52:54:00:00:00:01"}]}"#, "'mca'"),
      (#"{"disks": [{"path": "x", "readonly": true}]}"#, "'readonly'"),
      (#"{"nets": [{"tap": "tap0", "fd": 3}]}"#, "one of tap, fd"), (#"{"nets": [{"fd": 1}]}"#, "fd (3 or more)"),
      (#"{"nets": [{"tap": "tap0", "mac": "01:00:00:00:00:00"}]}"#, "unicast"),
      (#"{"disks": [{"readOnly": true}]}"#, "path' is missing"), (#"{"cpus": "two"}"#, "'cpus' has the wrong type"),
      (#"{"console": "screen"}"#, "stdio, none or file=PATH"), (#"{"seccomp": "on"}"#, "kill, log, errno or off"),
      (#"{"boot": "bios"}"#, "auto, linux64 or pvh"), (#"{"memory": "lots"}"#, "a size such as 128M"),
      ("[]", "JSON object"),
    ]) func file_thatIsWrong_isRefusedWithTheReason(text: String, reason: String) throws {
      for command in [["run"], ["secondary", "--listen", ":0", "--key", folder.path("key")]] {
        try makeKey(folder.path("key"))
        let outcome = try run(Environment.minivmm, command + ["--config", try config(text)])
        #expect(outcome.status == 65, "\(outcome.errors)")
        #expect(outcome.errors.contains(reason), "\(outcome.errors)")
      }
    }

    @Test func restore_takesNoMemorySize() throws {
      let outcome = try run(Environment.minivmm, ["restore", "x", "--memory", "1G"])
      #expect(outcome.status == 64 && outcome.errors.contains("--memory is the snapshot's"), "\(outcome.errors)")
    }

    // MARK: Cards

    /// The address that a guest's card says it has.
    func address(_ device: String) throws -> String {
      _ = try space.inside("redis-cli", ["-h", Namespace.guest, "ping"])
      let line = try space.inside("ip", ["neighbor", "show", Namespace.guest])
      try space.inside("ip", ["neighbor", "flush", "dev", device])
      return try #require(line.split(separator: " ").first { $0.split(separator: ":").count == 6 }.map(String.init))
    }

    @Test func cardWithoutMAC_hasOneOfItsOwn_thatStays() throws {
      func start(_ tap: String) throws -> String {
        let guest = try Guest(["run", "--net", "tap=\(tap)"] + boot(), in: space)
        try guest.wait(for: "lab: ready", timeout: 20)
        return try address("br0")
      }
      let (first, again, other) = (try start("tap0"), try start("tap0"), try start("tap1"))
      #expect(first == again)
      #expect(first != other)
      for address in [first, other] {
        let byte = try #require(UInt8(address.prefix(2), radix: 16))
        #expect(byte & 3 == 2, "\(address): unicast, locally administered")
      }
    }

    @Test func restore_keepsTheGuestsAddress_onAnotherTap() throws {
      let control = folder.path("control")
      let guest = try Guest(["run", "--net", "tap=tap0", "--control", control] + boot(), in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      let before = try address("br0")
      try Snapshot.snapshot(control, to: folder.path("snapshot"), stayPaused: true)
      guest.signal(SIGKILL)
      _ = try guest.waitForExit()
      let restored = try Guest(["restore", folder.path("snapshot"), "--net", "tap=tap1"], in: space)
      #expect(try waitUntil(seconds: 20) { try space.connect(port: 6379).exchange("PING\r\n", expecting: "+PONG\r\n") })
      #expect(try address("br0") == before)
      withExtendedLifetime(restored) {}
    }

    /// A program that opens a tap and hands it over as descriptor 7.
    static let opener = """
      import fcntl, os, struct, sys
      tap = os.open(sys.argv[2], os.O_RDWR)
      if sys.argv[2] == "/dev/net/tun":
          fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), int(sys.argv[3], 16)))
      os.dup2(tap, 7)
      os.execvp(sys.argv[4], sys.argv[4:])
      """

    func opened(_ tap: String, file: String = "/dev/net/tun", flags: String = "5002") -> [String] {
      ["-c", Self.opener, tap, file, flags, Environment.minivmm]
    }

    @Test func tapHandedOver_serves_withTheAddressOfItsName() throws {
      var addresses: [String] = []
      for _ in 0..<2 {
        let arguments = opened("tap0") + ["run", "--net", "fd=7", "--user", "nobody"] + boot()
        let guest = try Guest(arguments, in: space, binary: "python3")
        try guest.wait(for: "lab: ready", timeout: 20)
        addresses.append(try address("br0"))
      }
      let guest = try Guest(["run", "--net", "tap=tap0"] + boot(), in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      addresses.append(try address("br0"))
      #expect(Set(addresses).count == 1, "\(addresses)")
    }

    @Test func tapHandedOver_ofAPair_failsOver() throws {
      let key = folder.path("key")
      try makeKey(key)
      let second = try Guest(
        opened("tap1") + ["secondary", "--net", "fd=7", "--listen", "127.0.0.1:7000", "--key", key], in: space,
        binary: "python3")
      try second.wait(for: "waiting for a primary", timeout: 20)
      let first = try Guest(
        opened("tap0") + ["primary", "--net", "fd=7", "--replicate", "127.0.0.1:7000", "--key", key] + boot(),
        in: space,
        binary: "python3")
      try first.wait(for: "pair: now primary", timeout: 30)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "set", "k", "v"]) == "OK\n")
      let before = try address("br0")
      first.signal(SIGKILL)
      try second.wait(for: "now alone", timeout: 20)
      #expect(try space.inside("redis-cli", ["-h", Namespace.guest, "get", "k"]) == "v\n")
      #expect(try address("br0") == before)
    }

    @Test(arguments: [
      ("/dev/null", "5002", "7 is not an open tap"), ("/dev/net/tun", "1002", "without IFF_NO_PI or IFF_VNET_HDR"),
      ("/dev/net/tun", "4002", "without IFF_NO_PI or IFF_VNET_HDR"),
    ]) func descriptorThatIsNoTap_isRefused(file: String, flags: String, reason: String) throws {
      let words = ["ip", "netns", "exec", space.name, "python3"] + opened("tap0", file: file, flags: flags)
      let outcome = try run(words[0], Array(words[1...]) + ["run", "--net", "fd=7"] + boot())
      #expect(outcome.status == 69, "\(outcome.errors)")
      #expect(outcome.errors.contains(reason), "\(outcome.errors)")
    }

    @Test func descriptorsThatCannotBe_areRefused() throws {
      for (arguments, status, reason) in [
        (["run", "--net", "fd=9"], Int32(69), "9 is not an open tap"), (["run", "--net", "fd=1"], 64, "fd=1"),
        (["pair", "--net", "tap=tap0", "--secondary-net", "fd=9"], 64, "tap=NAME and nothing else"),
        (["pair", "--net", "tap=tap0", "--secondary-net", "socket=/x"], 64, "tap=NAME and nothing else"),
      ] {
        let outcome = try run(Environment.minivmm, arguments + boot())
        #expect(outcome.status == status, "\(arguments): \(outcome.errors)")
        #expect(outcome.errors.contains(reason), "\(outcome.errors)")
      }
    }

    /// Both of its processes would have the descriptor.
    @Test func tapHandedOver_isNothingForPair() throws {
      let words = ["netns", "exec", space.name, "python3"] + opened("tap0")
      let outcome = try run("ip", words + ["pair", "--net", "fd=7", "--secondary-net", "tap=tap1"] + boot())
      #expect(outcome.status == 64 && outcome.errors.contains("taps by name"), "\(outcome.errors)")
    }

    /// What TUNSETIFF refuses, each with its own cure.
    @Test func tapsThatCannotBeUsed_areNamedWithTheirCures() throws {
      try space.inside("ip", ["tuntap", "add", "many", "mode", "tap", "multi_queue"])
      try space.inside("ip", ["tuntap", "add", "tun5", "mode", "tun"])
      try space.inside("ip", ["tuntap", "add", "hers", "mode", "tap", "user", "nobody"])
      let setpriv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
      for (prefix, name, status, reasons) in [
        ([], "many", Int32(69), ["several queues", "ip tuntap del many mode tap multi_queue"]),
        ([], "tun5", 69, ["a tun", "ip tuntap del tun5 mode tun"]), ([], "br0", 69, ["br0 is not a tap"]),
        (setpriv, "hers", 77, ["belongs to another user", "as root"]),
      ] {
        let words = ["netns", "exec", space.name] + prefix + [Environment.minivmm, "run", "--net", "tap=\(name)"]
        let outcome = try run("ip", words + boot())
        #expect(outcome.status == status, "\(name): \(outcome.errors)")
        for reason in reasons { #expect(outcome.errors.contains(reason), "\(outcome.errors)") }
      }
      let guest = try Guest(["run", "--net", "tap=tap2"] + boot(), in: space)
      try guest.wait(for: "lab: ready", timeout: 20)
      let outcome = try run(
        "ip", ["netns", "exec", space.name, Environment.minivmm, "run", "--net", "tap=tap2"] + boot())
      #expect(outcome.status == 75 && outcome.errors.contains("in use by another process"), "\(outcome.errors)")
    }
  }
}
