import MiniVMM

/// What to say of a guest that did not find its root device, or drove no virtio device at all.
enum BootAdvice {
  /// Lines of the console that are repeated with the advice.
  static let lines = 8

  /// What Linux, Debian's initramfs and dracut say of a root device that does not come.
  private static let failures = [
    "Unable to mount root fs", "Gave up waiting for root", "dracut Warning: Could not boot",
  ]

  static func lacksRoot(_ console: String) -> Bool { failures.contains(where: console.contains) }

  /// - Parameters:
  ///   - console: the end of what the guest has said.
  ///   - devices: the virtio devices, by their names, and whether a driver has ever taken each.
  ///   - end: nil while the machine runs.
  /// - Returns: nil for a guest that lacks nothing.
  static func text(console: String, devices: [(name: String, wasDriven: Bool)], end: MachineEnd?) -> String? {
    let disks = devices.filter { $0.name.hasPrefix("blk") }
    let bus = "CONFIG_VIRTIO_MMIO, and CONFIG_ACPI or CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"
    let place = "built in or as modules in the initrd"
    if lacksRoot(console) {
      if disks.isEmpty {
        return "the kernel looks for a root device and has no disk; give --disk, or a whole system as --initrd"
      }
      guard disks.contains(where: \.wasDriven) else {
        return "the kernel has no driver for its disk; it needs CONFIG_VIRTIO_BLK, \(bus), \(place)"
      }
      return
        "the kernel drives its disk but mounts no root from it; correct root= (the first disk is /dev/vda), and have "
        + "the file system's driver, such as CONFIG_EXT4_FS, \(place)"
    }
    switch end {
    // A kernel that cannot switch off halts, and is stopped by its user.
    case .poweroff?, .reset(.keyboardController)?, .guestCrash?, .stopped?: break
    default: return nil
    }
    // Each machine has an entropy source, which a guest may leave alone.
    guard devices.count > 1, !devices.contains(where: \.wasDriven) else { return nil }
    return
      "the guest drove none of its virtio devices; a Linux kernel needs CONFIG_VIRTIO_BLK or CONFIG_VIRTIO_NET, \(bus), "
      + place
  }

  /// The advice behind the console's last lines, without what a terminal would take for commands.
  static func report(_ advice: String, console: String) -> String {
    let clean = String(
      String.UnicodeScalarView(console.unicodeScalars.filter { $0 == "\n" || (" "..."~").contains($0) }))
    let tail = clean.split(separator: "\n").suffix(lines).map { "  \($0)" }
    return (["the guest's console says:"] + tail + ["minivmm: \(advice)"]).joined(separator: "\n")
  }
}
