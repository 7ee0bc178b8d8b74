import Foundation
import Harness
import Testing

/// Root of every test that runs machines: one after the other, because they share two cores, taps and /dev/kvm.
@Suite(.serialized) enum Integration {}

extension Integration {
  /// Bad command lines and bad files: one line that names cause and cure, and the documented exit code.
  @Suite("Command line") struct CommandLine {
    struct Case: Sendable, CustomTestStringConvertible {
      let name: String
      let arguments: [String]
      let status: Int32
      let says: [String]
      var testDescription: String { name }
    }

    static let folder = FileManager.default.temporaryDirectory.appending(path: "minivmm-cli-\(getpid())").path

    static func file(_ name: String, _ contents: [UInt8]) -> String {
      try? FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
      let path = folder + "/" + name
      _ = FileManager.default.createFile(atPath: path, contents: Data(contents))
      return path
    }

    static let qcow2 = file("image.qcow2", [0x51, 0x46, 0x49, 0xfb] + [UInt8](repeating: 0, count: 4096))
    static let key: String = {
      let path = file("pair.key", [UInt8](repeating: 7, count: 32))
      chmod(path, 0o600)
      return path
    }()

    static let truncatedELF = Array((FileManager.default.contents(atPath: Environment.labGuest) ?? Data()).prefix(200))

    static let cases: [Case] = [
      Case(name: "no kernel", arguments: ["run"], status: 64, says: ["no kernel", "--kernel"]),
      Case(name: "unknown option", arguments: ["run", "--frobnicate"], status: 64, says: ["--frobnicate"]),
      Case(name: "nine CPUs", arguments: ["run", "--kernel", "x", "--cpus", "9"], status: 64, says: ["1 to 8"]),
      Case(
        name: "memory without sense", arguments: ["run", "--kernel", "x", "--memory", "lots"], status: 64,
        says: ["lots"]),
      Case(
        name: "missing kernel", arguments: ["run", "--kernel", "/nonexistent/vmlinux"], status: 66,
        says: ["/nonexistent/vmlinux", "correct the path"]),
      Case(
        name: "folder as kernel", arguments: ["run", "--kernel", "/tmp"], status: 66, says: ["/tmp", "not a file"]),
      Case(
        name: "text file as kernel", arguments: ["run", "--kernel", file("text", Array("hello, world\n".utf8))],
        status: 65, says: ["text", "kernel"]),
      Case(name: "empty kernel", arguments: ["run", "--kernel", file("empty", [])], status: 65, says: ["empty"]),
      Case(
        name: "truncated ELF", arguments: ["run", "--kernel", file("truncated.elf", truncatedELF)], status: 65,
        says: ["truncated.elf"]),
      Case(
        name: "missing tap", arguments: ["run", "--kernel", Environment.labGuest, "--net", "tap=nosuchtap"], status: 69,
        says: ["nosuchtap", "ip tuntap add"]),
      Case(
        name: "tap name too long",
        arguments: ["run", "--kernel", Environment.labGuest, "--net", "tap=" + String(repeating: "x", count: 40)],
        status: 69, says: ["ip tuntap add"]),
      Case(
        name: "missing disk", arguments: ["run", "--kernel", Environment.labGuest, "--disk", "/nonexistent/disk"],
        status: 66, says: ["/nonexistent/disk", "create it"]),
      Case(
        name: "folder as disk", arguments: ["run", "--kernel", Environment.labGuest, "--disk", "/tmp,ro"], status: 66,
        says: ["/tmp", "raw image"]),
      Case(
        name: "empty disk", arguments: ["run", "--kernel", Environment.labGuest, "--disk", file("nothing.img", [])],
        status: 66, says: ["nothing.img", "512"]),
      Case(
        name: "qcow2 as disk", arguments: ["run", "--kernel", Environment.labGuest, "--disk", qcow2], status: 65,
        says: ["image.qcow2 is a qcow2 file", "qemu-img convert -O raw", "image.qcow2,format=raw"]),
      Case(
        name: "qcow2 as read-only disk", arguments: ["run", "--kernel", Environment.labGuest, "--disk", qcow2 + ",ro"],
        status: 65, says: ["qemu-img convert"]),
      Case(
        name: "qcow2 in a configuration",
        arguments: [
          "run", "--config", file("qcow2.json", Array(#"{"kernel":"x","disks":[{"path":"\#(qcow2)"}]}"#.utf8)),
        ],
        status: 65, says: ["qemu-img convert"]),
      Case(
        name: "format in a configuration",
        arguments: [
          "run", "--config",
          file("format.json", Array(#"{"kernel":"x","disks":[{"path":"x","format":"qcow2"}]}"#.utf8)),
        ], status: 65, says: ["the only format is raw"]),
      Case(
        name: "format that is not raw", arguments: ["run", "--kernel", "x", "--disk", "x,format=qcow2"], status: 64,
        says: ["x,format=qcow2", "format=raw"]),
      Case(
        name: "qcow2 as a primary's disk",
        arguments: [
          "primary", "--kernel", Environment.labGuest, "--replicate", "127.0.0.1:1", "--key", key, "--disk", qcow2,
        ], status: 65, says: ["qemu-img convert"]),
      Case(
        name: "qcow2 as a secondary's disk",
        arguments: ["secondary", "--listen", "127.0.0.1:0", "--key", key, "--disk", qcow2], status: 65,
        says: ["qemu-img convert"]),
      Case(
        name: "read-only disk of a secondary",
        arguments: ["secondary", "--listen", "127.0.0.1:0", "--key", key, "--disk", "x,ro"], status: 64,
        says: ["leave out ,ro"]),
      Case(
        name: "missing socket", arguments: ["run", "--kernel", Environment.labGuest, "--net", "socket=/nonexistent/s"],
        status: 69, says: ["/nonexistent/s", "start the peer"]),
      Case(
        name: "net option without sense", arguments: ["run", "--kernel", "x", "--net", "bridge=br0"], status: 64,
        says: ["bridge=br0"]),
      Case(
        name: "configuration that is not JSON",
        arguments: ["run", "--config", file("bad.json", Array("kernel = x".utf8))],
        status: 65, says: ["bad.json", "JSON"]),
      Case(
        name: "configuration without end", arguments: ["run", "--config", "/dev/zero"], status: 65,
        says: ["/dev/zero", "1 MiB"]),
      Case(
        name: "configuration with an unknown key",
        arguments: ["run", "--config", file("key.json", Array(#"{"kernle":"x"}"#.utf8))], status: 65,
        says: ["kernle", "known are"]),
      Case(
        name: "unknown user", arguments: ["run", "--kernel", Environment.labGuest, "--user", "nosuchuser"], status: 77,
        says: ["nosuchuser"]),
      Case(
        name: "control socket that can't be",
        arguments: ["run", "--kernel", Environment.labGuest, "--control", "/nonexistent/c"],
        status: 73, says: ["/nonexistent/c"]),
      Case(
        name: "snapshot of nothing", arguments: ["snapshot", "--control", "/nonexistent/c", folder + "/s"], status: 76,
        says: ["/nonexistent/c", "--control"]),
      Case(
        name: "restore of a text file",
        arguments: ["restore", file("text.snapshot", [UInt8](repeating: 65, count: 4096))],
        status: 65, says: ["not a minivmm snapshot"]),
      Case(
        name: "status of nothing", arguments: ["status", "--control", "/nonexistent/c"], status: 76,
        says: ["/nonexistent/c", "--control"]),
      Case(
        name: "watch without end or sense", arguments: ["watch", "--control", "/nonexistent/c", "--count", "0"],
        status: 64, says: ["--count 0"]),
      Case(
        name: "pair with one card", arguments: ["pair", "--kernel", "x", "--net", "tap=tap0"], status: 64,
        says: ["--secondary-net"]),
      Case(
        name: "pair with one disk", arguments: ["pair", "--kernel", "x", "--disk", "x"], status: 64,
        says: ["--secondary-disk"]),
      Case(
        name: "secondary with a machine of its own",
        arguments: ["secondary", "--listen", ":0", "--key", "x", "--memory", "64M"], status: 64,
        says: ["--memory", "primary's"]),
      Case(
        name: "huge pages for a secondary", arguments: ["secondary", "--listen", ":0", "--key", "x", "--hugepages"],
        status: 64, says: ["page by page", "leave out --hugepages"]),
      Case(
        name: "huge pages in part", arguments: ["run", "--kernel", "x", "--memory", "129M", "--hugepages"], status: 64,
        says: ["multiple of 2M"]),
      Case(
        name: "more huge pages than there are",
        arguments: ["run", "--kernel", Environment.labGuest, "--memory", "512G", "--hugepages"], status: 69,
        says: ["needs 262144 huge pages", "sysctl vm.nr_hugepages="]),
      Case(
        name: "huge pages by configuration",
        arguments: [
          "run", "--config",
          file("huge.json", Array(#"{"kernel":"\#(Environment.labGuest)","memory":"512G","hugepages":true}"#.utf8)),
        ], status: 69, says: ["huge pages"]),
      Case(name: "restore of nothing", arguments: ["restore", "/nonexistent/s"], status: 66, says: ["/nonexistent/s"]),
    ]

    @Test(.enabled(if: Environment.hasLab, "needs /dev/kvm and the lab guest"), arguments: cases)
    func fails(_ example: Case) throws {
      let outcome = try run(Environment.minivmm, example.arguments, timeout: 20)
      #expect(outcome.status == example.status, "stderr: \(outcome.errors)")
      for text in example.says { #expect(outcome.errors.contains(text), "stderr: \(outcome.errors)") }
      // Usage errors add the parser's usage lines; all others are one line.
      if example.status != 64 {
        #expect(outcome.errors.split(separator: "\n").count == 1, "stderr: \(outcome.errors)")
      }
    }

    @Test(.enabled(if: Environment.isRoot, "root reads everything; dropping to nobody needs root"))
    func unreadableKernel_namesThePath() throws {
      let path = Self.file("secret", Array("x".utf8))
      try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
      let outcome = try run(
        "setpriv", ["--reuid=65534", "--clear-groups", Environment.minivmm, "run", "--kernel", path])
      // Either the kernel or /dev/kvm is refused first; both are named with a cure.
      #expect([66, 77].contains(outcome.status), "stderr: \(outcome.errors)")
      #expect(outcome.errors.contains("ermission"), "stderr: \(outcome.errors)")
    }

    @Test(.enabled(if: Environment.hasLab, "needs /dev/kvm and the lab guest"))
    func busyDisk_isRefusedWhileAnotherMachineWrites() throws {
      let disk = Self.file("busy.img", [UInt8](repeating: 0, count: 1 << 20))
      let first = try Guest([
        "run", "--kernel", Environment.labGuest, "--cmdline", "service=idle", "--disk", disk, "--memory", "64M",
      ])
      try first.wait(for: "lab: ready", timeout: 20)
      let outcome = try run(Environment.minivmm, ["run", "--kernel", Environment.labGuest, "--disk", disk])
      #expect(outcome.status == 75)
      #expect(outcome.errors.contains("in use by another process"))
    }

    @Test(
      .enabled(if: Environment.hasLab, "needs /dev/kvm and the lab guest"),
      arguments: [
        ("poweroff", Int32(0)), ("reset", 10), ("panic", 11),
      ])
    func exitCode_tellsHowTheGuestEnded(service: String, status: Int32) throws {
      let guest = try Guest([
        "run", "--kernel", Environment.labGuest, "--memory", "64M", "--cmdline", "service=\(service)",
      ])
      #expect(try guest.waitForExit() == status, "console: \(guest.console)")
    }

    /// With the registers that the guest had, on a few short lines, whatever they were.
    @Test(.enabled(if: Environment.hasLab, "needs /dev/kvm and the lab guest"))
    func tripleFault_isAReset_withTheLastRegistersOnStandardError() throws {
      let outcome = try run(
        Environment.minivmm,
        ["run", "--kernel", Environment.labGuest, "--memory", "64M", "--console", "none", "--cmdline", "service=crash"])
      #expect(outcome.status == 10, "stderr: \(outcome.errors)")
      let lines = outcome.errors.split(separator: "\n")
      #expect(lines.first == "minivmm: the guest reset itself by a triple fault")
      #expect(lines.count >= 8 && lines.count <= 9 && lines.allSatisfy { $0.count < 160 }, "\(outcome.errors)")
      for name in ["RIP 0x", "CR3 0x", "EFER 0x", "R15 0x", "instruction "] { #expect(outcome.errors.contains(name)) }
    }

    @Test func help_namesEveryCommand() throws {
      let outcome = try run(Environment.minivmm, ["--help"])
      let commands = [
        "run", "primary", "secondary", "pair", "status", "watch", "checkpoint", "failover", "pause", "resume", "stop",
        "snapshot", "restore", "doctor",
      ]
      for command in commands {
        #expect(outcome.output.contains("\n  \(command) "))
        #expect(try run(Environment.minivmm, ["help", command]).output.contains("EXAMPLES:"), "\(command)")
      }
    }
  }
}
