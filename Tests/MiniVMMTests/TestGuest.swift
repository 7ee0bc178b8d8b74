import CKVM
import CLinux
import Devices
import Glibc
import GuestMemory
import Harness
import StateCodec

@testable import MiniVMM

/// Why tests with a virtual machine can't run here; nil when they can.
let noKVM: String? = {
  do {
    _ = try KVMSystem()
    return nil
  } catch { return "\(error)" }
}()

/// A file in memory with these bytes; closed with the object.
final class MemoryFile {
  let descriptor: CInt

  /// - Parameter size: of the file, with zeroes behind the bytes.
  init(_ bytes: [UInt8], size: UInt64 = 0) {
    descriptor = unsafe lx_memfd("test", max(size, UInt64(bytes.count)))
    _ = unsafe bytes.withUnsafeBytes { unsafe lx_pwrite(descriptor, $0.baseAddress, $0.count, 0) }
  }
  deinit { lx_close(descriptor) }
}

/// An ELF64 file of one segment, every field of which a test can spoil.
struct TestELF {
  var type: UInt16 = 2
  var machine: UInt16 = 62
  var programHeaderOffset: UInt64 = 64
  var programHeaderSize: UInt16 = 56
  var programHeaderCount: UInt16?
  var entry: UInt64 = 0x20_0000
  /// (p_type, p_offset, p_paddr, p_filesz, p_memsz)
  var segments: [(UInt32, UInt64, UInt64, UInt64, UInt64)]
  var contents: [UInt8]
  static let contentsOffset: UInt64 = 0x1000

  /// `code` at `address`, where it is entered in 32-bit protected mode by a PVH note (or none).
  init(code: [UInt8], at address: UInt64 = 0x20_0000, pvhEntry: UInt32? = 0x20_0000) {
    contents = code
    entry = address
    segments = [(1, Self.contentsOffset, address, UInt64(code.count), UInt64(code.count))]
    guard let pvhEntry else { return }
    let note = StateWriter.bytes { note in
      [UInt32(4), 4, 18].forEach { note.put($0) }
      note.ascii("Xen\0")
      note.put(pvhEntry)
    }
    segments.append((4, Self.contentsOffset + UInt64(contents.count), 0, UInt64(note.count), UInt64(note.count)))
    contents += note
  }

  var bytes: [UInt8] {
    let head = StateWriter.bytes { out in
      out.ascii("\u{7f}ELF\u{2}\u{1}\u{1}")
      out.zeros(9)
      out.put(type)
      out.put(machine)
      out.put(UInt32(1))
      out.put(entry)
      out.put(programHeaderOffset)
      out.put(UInt64(0))
      out.put(UInt32(0))
      out.put(UInt16(64))
      out.put(programHeaderSize)
      out.put(programHeaderCount ?? UInt16(segments.count))
      out.zeros(6)
      for segment in segments {
        out.put(segment.0)
        out.put(UInt32(7))
        out.put(segment.1)
        out.put(UInt64(0))
        out.put(segment.2)
        out.put(segment.3)
        out.put(segment.4)
        out.put(UInt64(4))
      }
    }
    return head + [UInt8](repeating: 0, count: Int(Self.contentsOffset) - head.count) + contents
  }
}

/// 32-bit code of test guests.
enum Code {
  /// Writes 0x2000 to port 0x604.
  static let powerOff: [UInt8] = [0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4]
  /// for (;;) *(u32 *)0x300000 = ++ecx;
  static let countForever: [UInt8] = [0x41, 0x89, 0x0d, 0x00, 0x00, 0x30, 0x00, 0xeb, 0xf7]
  static let counter: UInt64 = 0x30_0000
  static let spin: [UInt8] = [0xeb, 0xfe]
  /// Clears interrupts and halts.
  static let haltForever: [UInt8] = [0xfa, 0xf4, 0xeb, 0xfc]
  /// lidt of an empty table, then ud2: a triple fault.
  static let tripleFault: [UInt8] = [0x0f, 0x01, 0x1d, 0x00, 0x10, 0x20, 0x00, 0x0f, 0x0b]

  /// mov dx, port; mov al/ax/eax, value; out
  static func out(_ port: UInt16, _ value: UInt8) -> [UInt8] {
    [0x66, 0xba, UInt8(port & 0xff), UInt8(port >> 8), 0xb0, value, 0xee]
  }
}

/// What a device on a bus saw.
final class Recorder: BusDevice {
  struct Access: Equatable, Sendable {
    var offset: UInt64
    var size: Int
    var value: UInt64?
  }
  private let accesses = Monitor<[Access]>([])
  let answer: UInt64

  init(answer: UInt64 = 0) { self.answer = answer }

  var seen: [Access] { accesses.withLock { $0 } }
  func read(offset: UInt64, size: Int) -> UInt64 {
    accesses.change { $0.append(Access(offset: offset, size: size, value: nil)) }
    return answer
  }
  func write(offset: UInt64, size: Int, value: UInt64) {
    accesses.change { $0.append(Access(offset: offset, size: size, value: value)) }
  }
  /// Blocks until `count` accesses were seen.
  func wait(_ count: Int) { accesses.wait { $0.count >= count ? () : nil } }
}

/// A machine of one segment of code.
func makeMachine(
  _ code: [UInt8], cpus: Int = 1, mebibytes: UInt64 = 16, dirtyTracking: DirtyTracking = .none,
  pio: [(Recorder, UInt64, UInt64)] = [], mmio: [(Recorder, UInt64, UInt64)] = [], load: Bool = true,
  rollsBack: Bool = false
) throws -> Machine {
  let memory = try GuestMemory(size: mebibytes << 20, rollsBack: rollsBack)
  var configuration = Machine.Configuration(cpus: cpus, memory: memory, eventLoop: try EventLoop())
  configuration.dirtyTracking = dirtyTracking
  for (device, start, size) in pio { _ = configuration.pio.add(device, at: start, size: size) }
  for (device, start, size) in mmio { _ = configuration.mmio.add(device, at: start, size: size) }
  let machine = try Machine(configuration, kvm: try KVMSystem())
  if load {
    let file = MemoryFile(TestELF(code: code).bytes)
    try machine.load(BootSource(kernel: file.descriptor))
  }
  return machine
}

/// A machine whose code runs in 64-bit user mode with port access, natively on every host: the low 16 MiB mapped one to
/// one by page tables at 0x100000, and page 0x500000 at ``UserMode/window`` as well.
func makeUserModeMachine(
  _ code: [UInt8], mebibytes: UInt64 = 16, dirtyTracking: DirtyTracking = .none
) throws -> Machine {
  let machine = try makeMachine(code, mebibytes: mebibytes, dirtyTracking: dirtyTracking)
  let memory = machine.memory
  let (pml4, pdpt, low, high): (UInt64, UInt64, UInt64, UInt64) = (0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000)
  try memory.store(pdpt | 7, at: pml4)
  try memory.store(low | 7, at: pdpt)
  try memory.store(high | 7, at: pdpt + 8)
  for page: UInt64 in 0..<8 { try memory.store(page << 21 | 0xe7, at: low + page * 8) }
  try memory.store(UserMode.windowEntry | 7, at: high)
  try memory.store(0x50_0000 | UserMode.entryBits, at: UserMode.windowEntry)
  try EntryPoint.linux64(0x20_0000).apply(to: machine.vcpus[0])
  var sregs = try machine.vcpus[0].sregs()
  sregs.cr3 = pml4
  (sregs.cs.dpl, sregs.cs.selector, sregs.ss.dpl, sregs.ss.selector) = (3, 0x33, 3, 0x2b)
  try machine.vcpus[0].setSregs(sregs)
  var regs = try machine.vcpus[0].regs()
  regs.rflags = 0x3002  // IOPL 3
  try machine.vcpus[0].setRegs(regs)
  return machine
}

enum UserMode {
  static let window: UInt64 = 0x4000_0000
  /// The page-table entry of the window.
  static let windowEntry: UInt64 = 0x10_4000
  /// Present, writable, user, accessed, dirty.
  static let entryBits: UInt64 = 0x67
  /// for (;;) ++*(u32 *)0x300000;
  static let countForever: [UInt8] = [0xff, 0x04, 0x25, 0, 0, 0x30, 0, 0xeb, 0xf7]
}

/// Waits, for tests only, until a number in guest RAM passes `value`; false after ten seconds.
func waitForCounter(_ memory: GuestMemory, at address: UInt64 = Code.counter, above value: UInt32) throws -> Bool {
  try waitUntil(seconds: 10) { try memory.load(UInt32.self, at: address) > value }
}
