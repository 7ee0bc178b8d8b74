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

  /// Tells switches and bridges where a card is now: a reverse ARP request from it to everybody.
  static func announce(_ mac: [UInt8], on tap: any FrameBackend) {
    let frame =
      [UInt8](repeating: 0, count: 12) + [UInt8](repeating: 0xff, count: 6) + mac + [
        0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3,
      ]
      + mac + [0, 0, 0, 0] + mac + [0, 0, 0, 0] + [UInt8](repeating: 0, count: 18)
    _ = send(frame, to: tap)
  }
}
