internal import CLinux
internal import Devices
internal import Glibc
internal import GuestMemory

/// Frames for a tap that do not come straight out of a guest's buffers.
enum TapOutput {
  /// Writes a frame with its virtio-net header; false when the tap is full for now. What can't be sent is lost, as on a
  /// wire.
  static func send(_ frame: [UInt8], to tap: any FrameBackend) -> Bool {
    let result = unsafe frame.withUnsafeBytes { unsafe lx_write(tap.descriptor, $0.baseAddress, $0.count) }
    return result != -Int(EAGAIN) && result != -Int(ENOBUFS)
  }
}
