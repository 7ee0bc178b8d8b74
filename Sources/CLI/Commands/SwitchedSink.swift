import CLinux
import Devices
import Glibc
import Synchronization

/// Console output that goes nowhere until it is turned on: what the guest of a secondary says, its primary's has said.
final class SwitchedSink: ConsoleSink {
  private let sink: any ConsoleSink
  private let isOn: Atomic<Bool>
  /// The end of what has gone nowhere: a guest that ends here only may have said why.
  private let unheard = MemorySink(limit: 512)

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
    isOn.load(ordering: .acquiring) ? sink.write(bytes) : unheard.write(bytes)
  }

  var lastUnheard: String { unheard.text }
}
