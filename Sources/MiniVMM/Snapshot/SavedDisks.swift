public import Devices

/// Whether a saved machine gets the disks that it had.
public enum SavedDisks {
  /// Refuses disks in another order, or of another size, mode or serial number.
  /// - Parameter here: the disks given, with their paths.
  /// - Returns: the paths of disks that have been written to since the machine was saved.
  public static func check(
    _ saved: [DiskIdentity], _ here: [(path: String, disk: DiskIdentity)]
  ) throws(SnapshotError) -> [String] {
    guard saved.count == here.count else {
      throw .disks("the saved machine has \(saved.count) disks, this one \(here.count); give as many")
    }
    var changed: [String] = []
    for (index, (was, (path, disk))) in zip(saved, here).enumerated() {
      let name = "disk \(index + 1), \(path),"
      guard was.capacity == disk.capacity else {
        throw .disks("\(name) has \(disk.capacity) bytes, the saved one \(was.capacity)\(cure)")
      }
      guard was.isReadOnly == disk.isReadOnly else {
        throw .disks(
          "\(name) is \(disk.isReadOnly ? "read-only" : "writable"), the saved one was not; "
            + (disk.isReadOnly ? "leave out ,ro" : "add ,ro"))
      }
      guard was.serial == disk.serial else {
        throw .disks(
          "\(name) has the serial number \(text(disk.serial)), the saved one \(text(was.serial))\(cure)")
      }
      guard let before = was.beginning, let now = disk.beginning, before != now else { continue }
      if let other = saved.firstIndex(where: { $0.beginning == now }) {
        throw .disks("\(name) holds what disk \(other + 1) of the saved machine held\(cure)")
      }
      changed.append(path)
    }
    return changed
  }

  private static let cure = "; give the same disks in the same order"

  private static func text(_ serial: [UInt8]) -> String { "'\(String(decoding: serial, as: UTF8.self))'" }
}
