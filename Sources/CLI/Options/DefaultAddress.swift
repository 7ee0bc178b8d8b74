import CLinux
import FoundationEssentials
import MiniVMM
import Replication

/// The address of a network card that was given none: the same at each start, another on another host, tap or socket.
enum DefaultAddress {
  /// Six bytes, unicast and locally administered.
  /// - Parameter index: the card's number in its machine.
  static func mac(of host: MachineDescription.Card.Host, _ index: Int) -> [UInt8] {
    // Keyed, as machine-id(5) asks for: an address tells nothing of the host's identity.
    let code = SharedKey(Array(hostIdentity.utf8)).code(Array("minivmm card".utf8), Array(name(of: host, index).utf8))
    // 0x52: QEMU's, so that people know a guest's address when they see one.
    return [0x52] + code[..<5]
  }

  /// What distinguishes a card among those of its host.
  private static func name(of host: MachineDescription.Card.Host, _ index: Int) -> String {
    switch host {
    case .tap(let name): return "tap \(name)"
    case .tapDescriptor(let number): return tapName(number).map { "tap \($0)" } ?? "card \(index)"
    case .socket(let path): return "card \(index) socket \(path)"
    case .custom: return "card \(index)"
    }
  }

  /// The name of the tap that a descriptor is attached to; nil for any other descriptor.
  static func tapName(_ descriptor: CInt) -> String? {
    var name = [CChar](repeating: 0, count: 16)
    guard unsafe lx_tap_name(descriptor, &name) >= 0 else { return nil }
    return String(decoding: name.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  /// An identity that stays over restarts of the host; its name where it has none.
  private static let hostIdentity: String = {
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id", "/sys/class/dmi/id/product_uuid"] {
      guard let data = try? Data(contentsOf: URL(filePath: path)) else { continue }
      let digits = String(decoding: data, as: UTF8.self).filter { $0.isHexDigit }
      // An image that has not been booted yet says "uninitialized".
      if digits.count == 32 { return digits }
    }
    return (try? Data(contentsOf: URL(filePath: "/proc/sys/kernel/hostname"))).map {
      String(decoding: $0, as: UTF8.self)
    } ?? ""
  }()
}
