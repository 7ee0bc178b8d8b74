internal import CLinux
internal import Glibc
public import GuestMemory
internal import VirtioLayout

/// Why a network back end could not be opened.
public enum NetBackendError: Error, Equatable, Sendable {
  case noTunDevice(errno: Int32)
  case noSuchTap(name: String)
  /// An interface of another kind.
  case notATap(name: String)
  case tun(name: String)
  case multiQueueTap(name: String)
  case tapNotPermitted(name: String)
  case tapBusy(name: String)
  case tap(name: String, operation: String, errno: Int32)
  /// A descriptor handed over is not attached to a tap.
  case notATapDescriptor(Int32)
  /// It is attached to one, but not with IFF_NO_PI and IFF_VNET_HDR.
  case tapDescriptorFlags(Int32)
  case socket(path: String, operation: String, errno: Int32)
}

extension NetBackendError: CustomStringConvertible {
  public var description: String {
    switch self {
    case .noTunDevice(let error):
      "cannot open /dev/net/tun: \(unsafe String(cString: lx_strerror(error))); "
        + (error == ENOENT || error == ENODEV || error == ENXIO
          ? "load the module: modprobe tun" : "run as root, or give this user access to it")
    case .noSuchTap(let name):
      "there is no network interface \(name); make it with: ip tuntap add \(name) mode tap && ip link set \(name) up"
    case .notATap(let name):
      "network interface \(name) is not a tap; make one beside it, such as: ip tuntap add tap0 mode tap && ip link set tap0 up"
    case .tun(let name):
      "\(name) is a tun, which carries no Ethernet frames; make it anew: ip tuntap del \(name) mode tun && "
        + "ip tuntap add \(name) mode tap && ip link set \(name) up"
    case .multiQueueTap(let name):
      "tap \(name) has several queues and takes no single one; make it anew: ip tuntap del \(name) mode tap multi_queue && "
        + "ip tuntap add \(name) mode tap && ip link set \(name) up"
    case .tapNotPermitted(let name):
      "tap \(name) belongs to another user; run as its owner or as root, or make it anew: ip tuntap del \(name) mode tap && "
        + "ip tuntap add \(name) mode tap user NAME"
    case .tapBusy(let name): "tap \(name) is in use by another process; stop it or choose another tap"
    case .tap(let name, let operation, let error):
      "\(operation) on tap \(name): \(unsafe String(cString: lx_strerror(error))); remove the tap and make it anew"
    case .notATapDescriptor(let number):
      "descriptor \(number) is not an open tap; give the number under which a tap was handed to this process"
    case .tapDescriptorFlags(let number):
      "descriptor \(number) is a tap without IFF_NO_PI or IFF_VNET_HDR; whoever opens it must attach it with both (TUNSETIFF)"
    case .socket(let path, let operation, let error):
      "\(operation) on socket \(path): \(unsafe String(cString: lx_strerror(error))); start the peer that listens there first"
    }
  }
}

/// An existing Linux tap interface, with checksum and segmentation offload.
public final class TapBackend: FrameBackend {
  /// Reads in a row without a frame after which the tap is lost.
  private static let oddFrames = 64

  public let descriptor: CInt

  public init(name: String) throws(NetBackendError) {
    var step: CInt = 0
    var kind: CInt = 0
    let fd = unsafe lx_tap_open(name, &step, &kind)
    guard fd >= 0 else {
      switch (step, -fd) {
      case (0, let error): throw .noTunDevice(errno: error)
      case (_, ENODEV): throw .noSuchTap(name: name)
      case (_, EBUSY): throw .tapBusy(name: name)
      // Of the flags, the kernel compares these two with the interface's.
      case (1, EINVAL) where kind == LX_KIND_TAP: throw .multiQueueTap(name: name)
      case (1, EINVAL) where kind == LX_KIND_TUN: throw .tun(name: name)
      case (1, EINVAL): throw .notATap(name: name)
      case (1, EPERM): throw .tapNotPermitted(name: name)
      case (1, let error): throw .tap(name: name, operation: "TUNSETIFF", errno: error)
      case (_, let error): throw .tap(name: name, operation: "TUNSETVNETHDRSZ", errno: error)
      }
    }
    descriptor = fd
  }

  /// Takes over a descriptor that is attached to a tap, with IFF_NO_PI and IFF_VNET_HDR. The process that opened it must not use it
  /// any more.
  public init(handedOver number: Int32) throws(NetBackendError) {
    var step: CInt = 0
    let fd = unsafe lx_tap_adopt(number, &step)
    guard fd >= 0 else {
      switch (step, -fd) {
      case (0, EINVAL): throw .tapDescriptorFlags(number)
      case (0, _): throw .notATapDescriptor(number)
      case (1, let error): throw .tap(name: "fd \(number)", operation: "fcntl", errno: error)
      case (_, let error): throw .tap(name: "fd \(number)", operation: "TUNSETVNETHDRSZ", errno: error)
      }
    }
    descriptor = fd
  }

  deinit { lx_close(descriptor) }

  public var offloads: UInt64 {
    NetFeature.checksum | NetFeature.guestChecksum | NetFeature.guestTSO4 | NetFeature.guestTSO6
      | NetFeature.hostTSO4 | NetFeature.hostTSO6
  }

  public func setGuestOffloads(_ features: UInt64) {
    var flags: UInt32 = 0
    if features & NetFeature.guestChecksum != 0 {
      flags |= LX_TAP_CSUM
      if features & NetFeature.guestTSO4 != 0 { flags |= LX_TAP_TSO4 }
      if features & NetFeature.guestTSO6 != 0 { flags |= LX_TAP_TSO6 }
    }
    lx_tap_set_offload(descriptor, flags)
  }

  public func send(
    _ header: [UInt8], _ frame: GuestBuffers, offset: UInt64, count: UInt64, memory: GuestMemory
  ) -> SendResult {
    let result = unsafe header.withUnsafeBytes { header in
      let prefix = unsafe iovec(
        iov_base: UnsafeMutableRawPointer(mutating: header.baseAddress), iov_len: header.count)
      return unsafe memory.withVectors(frame, offset: offset, count: count, prefix: prefix) { vectors in
        unsafe lx_writev(descriptor, vectors.baseAddress, CInt(vectors.count))
      }
    }
    if result >= 0 { return .sent }
    // EINVAL: the kernel found the header's offsets nonsense; EIO and EBADFD: the interface is down or gone.
    return result == -Int(EAGAIN) || result == -Int(ENOBUFS) ? .full : .dropped
  }

  public func flush() -> Bool { true }

  public func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
    var result = 0
    // A frame that tun cannot describe is gone, and the next one waits. Nothing but such frames: the tap is of no use.
    for _ in 0..<Self.oddFrames {
      result = unsafe lx_read(descriptor, buffer.baseAddress, buffer.count)
      if result != -Int(EINVAL) { break }
    }
    return result == -Int(EAGAIN) || result == -Int(EINTR) ? 0 : result
  }
}
