public import ArgumentParser
import CLinux
import Devices
import Glibc
import GuestMemory
import MiniVMM
import Pair
public import Replication
import StateCodec

extension ReplicationMode: ExpressibleByArgument {}

/// A time such as `100ms` or `2s`; a bare number is milliseconds.
struct Duration: ExpressibleByArgument, Equatable, Sendable {
  let nanoseconds: UInt64

  init?(argument: String) {
    let (digits, unit): (Substring, UInt64) =
      argument.hasSuffix("ms")
      ? (argument.dropLast(2), 1_000_000)
      : argument.hasSuffix("s") ? (argument.dropLast(), 1_000_000_000) : (argument[...], 1_000_000)
    guard let number = UInt64(digits), number > 0, number <= 3_600_000 else { return nil }
    nanoseconds = number * unit
  }

  var defaultValueDescription: String { "\(nanoseconds / 1_000_000)ms" }
}

/// The key both sides of a pair share.
enum PairKey {
  /// Reads a key file: 32 bytes at least, this user's or root's, and for its owner alone.
  static func read(_ path: String) throws -> SharedKey {
    let descriptor = try RunCommand.open(path, what: "key")
    defer { lx_close(descriptor) }
    guard lx_file_is_own(descriptor) != 0 else {
      throw Failure(
        "key \(path) is another user's, who can read and change it; run: chown $USER \(path)", .noPermission)
    }
    guard lx_file_mode(descriptor) & 0o077 == 0 else {
      throw Failure("key \(path) can be read by others; run: chmod 600 \(path)", .noPermission)
    }
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = unsafe bytes.withUnsafeMutableBytes { unsafe lx_pread(descriptor, $0.baseAddress, $0.count, 0) }
    guard count >= 32 else {
      throw Failure(
        "key \(path) is shorter than 32 bytes; make one with: (umask 077; head -c 32 /dev/urandom > \(path))", .badData)
    }
    return SharedKey(Array(bytes[..<count]))
  }
}

/// What a secondary must know of the primary's machine.
struct PairDescription {
  var cpus: Int
  var memory: UInt64
  var mode: ReplicationMode
  /// Longest time between checkpoints, in nanoseconds, for when it takes over.
  var period: UInt64
  /// The card's address; none without a card.
  var mac: [UInt8]
  var disks: [UInt64]
  /// The guest's, from its start on and over all takeovers: 16 random bytes.
  var identity: [UInt8]
  /// The primary's host's.
  var processor: HostProcessor

  var encoded: [UInt8] {
    var out = StateWriter()
    out.put(UInt8(cpus))
    out.put(memory)
    out.put(Array(mode.rawValue.utf8))
    out.put(period)
    out.put(mac)
    out.put(UInt8(disks.count))
    for size in disks { out.put(size) }
    out.put(processor.encoded)
    out.put(identity)
    return out.bytes
  }

  init(
    cpus: Int, memory: UInt64, mode: ReplicationMode, period: UInt64, mac: [UInt8], identity: [UInt8], disks: [UInt64],
    processor: HostProcessor
  ) {
    self.identity = identity
    self.processor = processor
    self.cpus = cpus
    self.memory = memory
    self.mode = mode
    self.period = period
    self.mac = mac
    self.disks = disks
  }

  init(decoding bytes: [UInt8]) throws(StateError) {
    var reader = StateReader(bytes)
    cpus = Int(try reader.get(UInt8.self))
    memory = try reader.get()
    guard let mode = ReplicationMode(rawValue: String(decoding: try reader.get([UInt8].self), as: UTF8.self)) else {
      throw .invalid("an unknown mode of replication")
    }
    self.mode = mode
    period = try reader.get()
    mac = try reader.get()
    disks = []
    for _ in 0..<(try reader.get(UInt8.self)) { disks.append(try reader.get()) }
    processor = try HostProcessor(decoding: try reader.get())
    identity = try reader.get()
    guard mac.isEmpty || mac.count == 6 else { throw .invalid("a card's address of \(mac.count) bytes") }
  }

  static func newIdentity() throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 16)
    let error = unsafe bytes.withUnsafeMutableBytes { unsafe lx_getrandom($0.baseAddress, $0.count) }
    guard error == 0 else { throw HostError(operation: "getrandom", errno: -error) }
    return bytes
  }

  /// Whether both cannot serve at the same time: it is the same guest, or one that was started anew in its place.
  func isSameGuest(as other: PairDescription) -> Bool { identity == other.identity || !mac.isEmpty && mac == other.mac }
}

/// The tap of a protected guest, opened; nil where it has no card.
func protectedTap(_ description: MachineDescription) throws -> TapBackend? {
  guard description.cards.count <= 1 else {
    throw ValidationError("a protected guest has one network card at the most")
  }
  switch description.cards.first?.host {
  case nil: return nil
  case .tap(let name): return try TapBackend(name: name)
  case .tapDescriptor(let number): return try TapBackend(handedOver: number)
  case .socket, .custom: throw ValidationError("a protected guest's card is on a tap")
  }
}

/// One line on standard error, for people and for scripts that wait for it.
func tell(_ line: String) {
  let bytes = Array("minivmm: \(line)\n".utf8)
  _ = unsafe bytes.withUnsafeBytes { unsafe lx_write(2, $0.baseAddress, $0.count) }
}
