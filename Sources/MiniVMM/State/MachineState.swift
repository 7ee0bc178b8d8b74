internal import StateCodec

/// A whole machine's state but for its RAM: shape, VM, vCPUs, devices by name.
struct MachineState: Equatable, Sendable {
  struct Device: Equatable, Sendable {
    var name: String
    var state: [UInt8]
  }

  /// What a machine must have in common with the saved one.
  struct Shape: Equatable, Sendable {
    var cpus: Int
    var memorySize: UInt64
    var devices: [String]
  }

  var shape: Shape
  var vm: VMState
  var vcpus: [VCPUState]
  var devices: [Device]

  private static let shapeTag = sectionTag("shap")
  private static let deviceTag = sectionTag("dev ")

  func encode() -> [UInt8] {
    var writer = StateWriter()
    writer.section(Self.shapeTag, version: 1) { writer in
      writer.put(UInt32(shape.cpus))
      writer.put(shape.memorySize)
      writer.put(UInt32(shape.devices.count))
      for name in shape.devices { writer.put(Array(name.utf8)) }
    }
    vm.encode(to: &writer)
    for vcpu in vcpus { vcpu.encode(to: &writer) }
    for device in devices { writer.section(Self.deviceTag, version: 1) { $0.put(device.state) } }
    return writer.bytes
  }

  /// Reads all of it, and refuses it as a whole when it is another machine's: nothing has been applied then.
  static func decode(_ bytes: [UInt8], for shape: Shape, xsaveSize: Int) throws(MachineError) -> MachineState {
    var reader = StateReader(bytes)
    let saved: Shape
    do throws(StateError) { saved = try decodeShape(&reader) } catch { throw .state(error) }
    try check(saved, shape)
    do throws(StateError) {
      let vm = try VMState.decode(&reader)
      var vcpus: [VCPUState] = []
      for _ in 0..<shape.cpus { vcpus.append(try VCPUState.decode(&reader, xsaveSize: xsaveSize)) }
      var devices: [Device] = []
      for name in shape.devices {
        let state = try reader.section(deviceTag, version: 1) { reader, _ throws(StateError) in
          try reader.get([UInt8].self)
        }
        devices.append(Device(name: name, state: state))
      }
      guard reader.remaining == 0 else { throw StateError.invalid("\(reader.remaining) bytes after the last device") }
      return MachineState(shape: shape, vm: vm, vcpus: vcpus, devices: devices)
    } catch { throw .state(error) }
  }

  private static func decodeShape(_ reader: inout StateReader) throws(StateError) -> Shape {
    try reader.section(shapeTag, version: 1) { reader, _ throws(StateError) in
      let cpus: UInt32 = try reader.get()
      let memorySize: UInt64 = try reader.get()
      let count: UInt32 = try reader.get()
      guard Int(count) * 4 <= reader.remaining else { throw .invalid("\(count) devices") }
      var names: [String] = []
      for _ in 0..<count { names.append(String(decoding: try reader.get([UInt8].self), as: UTF8.self)) }
      return Shape(cpus: Int(cpus), memorySize: memorySize, devices: names)
    }
  }

  private static func check(_ saved: Shape, _ here: Shape) throws(MachineError) {
    if saved.cpus != here.cpus { throw .differentShape(what: "CPUs:", saved: "\(saved.cpus)", here: "\(here.cpus)") }
    if saved.memorySize != here.memorySize {
      throw .differentShape(what: "RAM of bytes:", saved: "\(saved.memorySize)", here: "\(here.memorySize)")
    }
    if saved.devices != here.devices {
      throw .differentShape(
        what: "devices:", saved: saved.devices.joined(separator: " "), here: here.devices.joined(separator: " "))
    }
  }
}
