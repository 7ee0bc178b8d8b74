import Foundation
import Harness
import Testing

extension Integration {
  /// The commands of docs/guests.md, as they stand there.
  @Suite(
    "Guests of the user's own",
    .enabled(if: Environment.hasLinux && Environment.isRoot, "needs root, /dev/kvm and the built Linux guest"))
  struct GuestDocument {
    private let folder = TestFolder()
    private let space: Namespace

    init() throws {
      space = try Namespace(taps: [])
      try FileManager.default.createSymbolicLink(
        atPath: folder.path("guests"), withDestinationPath: Environment.root.appending(path: "guests").path)
      try FileManager.default.createSymbolicLink(
        atPath: folder.path("minivmm"), withDestinationPath: Environment.minivmm)
    }

    /// The lines of the block behind `<!-- commands: NAME -->`.
    private static func commands(_ name: String) throws -> [String] {
      let document = try String(contentsOf: Environment.root.appending(path: "docs/guests.md"), encoding: .utf8)
      let parts = document.components(separatedBy: "<!-- commands: \(name) -->\n```sh\n")
      try #require(parts.count == 2)
      return try #require(parts[1].components(separatedBy: "\n```").first).components(separatedBy: "\n")
    }

    private func shell(_ command: String) -> [String] {
      ["bash", "-c", "cd '\(folder.url.path)'; PATH=$PWD:$PATH; set -e; \(command)"]
    }

    private func expect(_ command: String, timeout: TimeInterval = 600) throws {
      let words = shell(command)
      let outcome = try run(words[0], Array(words.dropFirst()), timeout: timeout)
      #expect(outcome.status == 0, "\(command): \(outcome.errors.suffix(2000))")
    }

    /// Runs `prepare` outside of the namespace, then the network's and the pair's commands inside, until the secondary follows.
    private func protect(_ commands: [String], prepare: Int) throws -> Guest {
      for command in commands[..<prepare] { try expect(command) }
      try space.inside("bash", ["-c", commands[prepare]])
      let pair = try Guest(Array(shell(commands[prepare + 1]).dropFirst()), in: space, binary: "bash")
      try pair.wait(for: "minivmm: services started", timeout: 300)
      try pair.wait(for: "now primary", timeout: 120)
      return pair
    }

    /// The processes of a pair that belong to a side.
    private func kill(_ side: String, of pair: Guest) throws {
      let found = try run("pgrep", ["-f", "-P", "\(pair.identifier)", "minivmm \(side) "]).output
      let process = try #require(Int32(found.trimmingCharacters(in: .whitespacesAndNewlines)), "\(found)")
      _ = Foundation.kill(process, SIGKILL)
    }

    @Test func containerImage_becomesAProtectedService() throws {
      let commands = try Self.commands("container")
      try #require(commands.count == 5)
      try makeContainerImage()
      let pair = try protect(commands, prepare: 2)
      // It has started, and takes some seconds to listen.
      func answers() -> Bool { (try? space.inside("bash", ["-c", commands[4]], timeout: 60)) == "hello, world\n" }
      #expect(waitUntil(seconds: 120, answers))
      try kill("primary", of: pair)
      #expect(waitUntil(seconds: 60, answers))
      #expect(pair.count(of: "now alone") + pair.count(of: "now takingOver") > 0, "\(pair.console)")
    }

    @Test(.enabled(if: ProcessInfo.processInfo.environment["MINIVMM_NIGHTLY"] != nil, "downloads a Debian root"))
    func debianRoot_becomesAProtectedService() throws {
      let commands = try Self.commands("debian")
      try #require(commands.count == 5)
      let pair = try protect(commands, prepare: 3)
      var client: Connection?
      #expect(
        waitUntil(seconds: 180) {
          client = try? space.connect(port: 11211, timeout: 20_000)
          return client != nil
        })
      let connection = try #require(client)
      #expect(try connection.exchange("set k 0 0 1\r\nx\r\n", expecting: "STORED\r\n", timeout: 60_000))
      try kill("primary", of: pair)
      #expect(try connection.exchange("get k\r\n", expecting: "VALUE k 0 1\r\nx\r\nEND\r\n", timeout: 60_000))
    }

    /// An image's device files stay out: written through, they would be this machine's. And a name that is no shell's is passed on.
    @Test func imageWithDevices_writesNone() throws {
      try expect(
        """
        cat >make.py <<'END'
        import io, tarfile
        with tarfile.open("image.tar", "w") as archive:
            def add(name, kind, content=b"", **more):
                member = tarfile.TarInfo(name)
                member.type, member.size = kind, len(content)
                for key, value in more.items():
                    setattr(member, key, value)
                archive.addfile(member, io.BytesIO(content))
            # No driver has this number: opening it is an error.
            add("x", tarfile.BLKTYPE, devmajor=240, devminor=77)
            add("x", tarfile.REGTYPE, b"written")
            add("minivmm", tarfile.DIRTYPE, mode=0o755)
            add("minivmm/busybox", tarfile.FIFOTYPE)
            add("minivmm/run", tarfile.BLKTYPE, devmajor=240, devminor=77)
        END
        python3 make.py
        timeout 60 guests/image image.tar image.img /x
        """, timeout: 100)
      let listing = try run("debugfs", ["-R", "ls -l /", folder.path("image.img")])
      #expect(listing.output.contains("100644") && !listing.output.contains(" 60"), "\(listing.output)")
    }

    /// What `docker save` writes, of two layers: the second replaces a file of the first and removes another.
    private func makeContainerImage() throws {
      try expect(
        """
        mkdir -p first/bin first/srv second/srv
        cp /bin/busybox first/bin/
        echo old >first/srv/index.html
        echo gone >first/srv/gone.html
        echo 'hello, world' >second/srv/index.html
        touch second/srv/.wh.gone.html
        for layer in first second; do tar -C $layer -cf $layer.tar . ; done
        echo '{"architecture":"amd64","config":{"Env":["NAME=a service'"'"'s","a.b=c"],"WorkingDir":"/srv","Cmd":["/bin/busybox","httpd","-f","-p","80"]}}' >config.json
        echo '[{"Config":"config.json","RepoTags":["hello:latest"],"Layers":["first.tar","second.tar"]}]' >manifest.json
        tar -cf image.tar manifest.json config.json first.tar second.tar
        """)
    }
  }
}
