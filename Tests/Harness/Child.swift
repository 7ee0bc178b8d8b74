import CHarness
import Foundation

/// A child process. Not Foundation's `Process`: that reads past the end of a directory entry whenever it starts one, and a
/// `FileHandle`'s `readabilityHandler` races with its own removal; both crash the tests now and then
/// (swift-corelibs-foundation 5472 and 3276).
public final class Child: @unchecked Sendable {
  public let identifier: pid_t
  private let lock = NSLock()
  /// Exit code, or -signal.
  private var status: Int32?
  private static let living = Living()

  /// Starts a program found in $PATH, with these descriptors as its standard ones.
  public init(_ arguments: [String], input: Int32 = Child.nothing, output: Int32 = 1, errors: Int32 = 2) throws {
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    for (number, descriptor) in [input, output, errors].enumerated() {
      posix_spawn_file_actions_adddup2(&actions, descriptor, Int32(number))
    }
    posix_spawn_file_actions_addclosefrom_np(&actions, 3)

    // Dispatch's workers block signals, tests and campaigns ignore some: a child inherits neither.
    var attributes = posix_spawnattr_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    var (blocked, reset) = (sigset_t(), sigset_t())
    sigemptyset(&blocked)
    sigemptyset(&reset)
    for ignored in [SIGPIPE, SIGINT, SIGTERM] { sigaddset(&reset, ignored) }
    posix_spawnattr_setsigmask(&attributes, &blocked)
    posix_spawnattr_setsigdefault(&attributes, &reset)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF))

    var words = arguments.map { strdup($0) } + [nil]
    defer { for word in words { free(word) } }
    var child: pid_t = 0
    let failure = posix_spawnp(&child, words[0]!, &actions, &attributes, &words, environ)
    guard failure == 0 else {
      throw HarnessError("cannot start \(arguments[0]): \(String(cString: strerror(failure)))")
    }
    identifier = child
    Self.living.change { $0.insert(child) }
  }

  /// Kills all there are: what waits for them fails, and tidies up.
  public static func killAll() {
    living.change { for child in $0 { kill(child, SIGKILL) } }
  }

  /// /dev/null, to read from.
  public static let nothing = open("/dev/null", O_RDONLY | O_CLOEXEC)

  public var isRunning: Bool { reap() == nil }

  /// Its exit code, or -signal; waits for its end.
  @discardableResult
  public func wait() -> Int32 {
    while true {
      if let status = reap() { return status }
      // Without the lock, and without taking the status: others may ask meanwhile, and signal.
      var information = siginfo_t()
      waitid(P_PID, id_t(identifier), &information, WEXITED | WNOWAIT)
    }
  }

  private func reap() -> Int32? {
    lock.withLock {
      // An identifier that is not waited for any more may be another's.
      Self.living.change { living in
        var word: Int32 = 0
        if status == nil && waitpid(identifier, &word, WNOHANG) == identifier {
          status = word & 0x7f == 0 ? word >> 8 & 0xff : -(word & 0x7f)
          living.remove(identifier)
        }
      }
      return status
    }
  }

  /// Sends a signal, unless it has ended.
  public func signal(_ number: Int32) {
    if isRunning { kill(identifier, number) }
  }
}

private final class Living: @unchecked Sendable {
  private let lock = NSLock()
  private var identifiers: Set<pid_t> = []

  func change(_ body: (inout Set<pid_t>) -> Void) { lock.withLock { body(&identifiers) } }
}

/// A pipe whose ends no child inherits unasked.
final class ChildPipe: @unchecked Sendable {
  private(set) var reading: Int32
  private(set) var writing: Int32

  init() throws {
    _ = Self.ignoresBrokenPipes
    var ends: [Int32] = [0, 0]
    guard pipe2(&ends, O_CLOEXEC) == 0 else { throw HarnessError("no pipe: \(String(cString: strerror(errno)))") }
    (reading, writing) = (ends[0], ends[1])
  }

  deinit {
    closeReading()
    closeWriting()
  }

  private static let ignoresBrokenPipes: Void = { Foundation.signal(SIGPIPE, SIG_IGN) }()

  func closeReading() {
    if reading >= 0 { close(reading) }
    reading = -1
  }

  func closeWriting() {
    if writing >= 0 { close(writing) }
    writing = -1
  }

  func write(_ text: String) {
    var rest = Array(text.utf8)[...]
    while !rest.isEmpty {
      let count = rest.withUnsafeBytes { Foundation.write(writing, $0.baseAddress, $0.count) }
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else { return }
      rest = rest.dropFirst(count)
    }
  }

  /// What has come, waiting for the first of it; empty at the end.
  func read() -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: 1 << 16) { buffer, count in
      var got: Int
      repeat { got = Foundation.read(reading, buffer.baseAddress, buffer.count) } while got < 0 && errno == EINTR
      count = max(got, 0)
    }
  }

  /// Everything up to the end.
  func readToEnd() -> String {
    var bytes: [UInt8] = []
    while case let part = read(), !part.isEmpty { bytes += part }
    return String(decoding: bytes, as: UTF8.self)
  }
}
