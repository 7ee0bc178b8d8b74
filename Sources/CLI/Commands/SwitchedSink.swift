import CLinux
import Devices
import Glibc
import Synchronization

/// Console output that goes nowhere until it is turned on: what the guest of a secondary says, its primary's has said.
final class SwitchedSink: ConsoleSink {
  private let sink: any ConsoleSink
  private let isOn: Atomic<Bool>
  /// The end of it all: a guest that ends may have said why.
  private let recent = MemorySink(limit: 1024)
  /// Looks at ``last`` after each line that has gone out, until it says that it has seen what it looks for. Device thread.
  private let watch = Mutex<(@Sendable (String) -> Bool)?>(nil)

  init(_ sink: any ConsoleSink, isOn: Bool) {
    self.sink = sink
    self.isOn = Atomic(isOn)
  }

  /// Where an option says that the console goes; nil for nowhere.
  static func open(_ console: ConsoleOption, isOn: Bool) throws -> SwitchedSink? {
    switch console {
    case .none: return nil
    case .stdio: return SwitchedSink(DescriptorSink(1), isOn: isOn)
    case .file(let path):
      let file = unsafe lx_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
      guard file >= 0 else {
        throw Failure(
          "cannot write console file \(path): \(unsafe String(cString: lx_strerror(-file))); choose another path",
          .cannotCreate)
      }
      return SwitchedSink(DescriptorSink(file), isOn: isOn)
    }
  }

  func turnOn() { isOn.store(true, ordering: .releasing) }

  var waitDescriptor: CInt? { sink.waitDescriptor }

  func write(_ bytes: ArraySlice<UInt8>) -> Int {
    let isOn = isOn.load(ordering: .acquiring)
    let taken = isOn ? sink.write(bytes) : bytes.count
    _ = recent.write(bytes.prefix(taken))
    if isOn, bytes.prefix(taken).contains(UInt8(ascii: "\n")) {
      watch.withLock { if $0?(last) == true { $0 = nil } }
    }
    return taken
  }

  /// The end of what the guest has said.
  var last: String { recent.text }

  /// - Parameter look: true once it has seen enough.
  func watch(_ look: @escaping @Sendable (String) -> Bool) { watch.withLock { $0 = look } }
}
