import Devices
import Synchronization

/// Console output that goes nowhere until it is turned on: what the guest of a secondary says, its primary's has said.
final class SwitchedSink: ConsoleSink {
  private let sink: any ConsoleSink
  private let isOn: Atomic<Bool>

  init(_ sink: any ConsoleSink, isOn: Bool) {
    self.sink = sink
    self.isOn = Atomic(isOn)
  }

  func turnOn() { isOn.store(true, ordering: .releasing) }

  var waitDescriptor: CInt? { sink.waitDescriptor }

  func write(_ bytes: ArraySlice<UInt8>) -> Int { isOn.load(ordering: .acquiring) ? sink.write(bytes) : bytes.count }
}
