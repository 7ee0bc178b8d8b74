internal import CLinux
public import StateCodec
internal import Synchronization

/// The CMOS clock (MC146818) at ports 0x70 (index) and 0x71 (data): the host's UTC, read-only, no alarms, no interrupts.
/// Linux reads it once at boot.
public final class RTC: BusDevice, MachineDevice {
  public static let port: UInt64 = 0x70
  public static let size: UInt64 = 2

  public let name = "rtc"
  private let index = Atomic<UInt8>(0)
  private let nanosecondsSince1970: @Sendable () -> UInt64

  public init() { nanosecondsSince1970 = { lx_realtime_ns() } }

  /// - Parameter clock: nanoseconds since 1970 UTC, for tests.
  package init(clock: @escaping @Sendable () -> UInt64) { nanosecondsSince1970 = clock }

  public func read(offset: UInt64, size: Int) -> UInt64 {
    offset == 0 ? 0xff : UInt64(register(index.load(ordering: .relaxed)))
  }

  public func write(offset: UInt64, size: Int, value: UInt64) {
    // Bit 7 masks NMIs, of which there are none.
    if offset == 0 { index.store(UInt8(truncatingIfNeeded: value) & 0x7f, ordering: .relaxed) }
  }

  private func register(_ index: UInt8) -> UInt8 {
    let seconds = nanosecondsSince1970() / 1_000_000_000
    let date = Self.civil(days: seconds / 86400)
    return switch index {
    case 0x00: Self.bcd(seconds % 60)
    case 0x02: Self.bcd(seconds / 60 % 60)
    case 0x04: Self.bcd(seconds / 3600 % 24)
    case 0x06: Self.bcd((seconds / 86400 + 4) % 7 + 1)  // Sunday is 1; 1970-01-01 was a Thursday
    case 0x07: Self.bcd(date.day)
    case 0x08: Self.bcd(date.month)
    case 0x09: Self.bcd(date.year % 100)
    case 0x32: Self.bcd(date.year / 100 % 100)
    case 0x0a: 0x26  // 32768 Hz time base, no update in progress
    case 0x0b: 0x02  // 24 hours, BCD
    case 0x0d: 0x80  // battery good
    default: 0
    }
  }

  private static func bcd(_ value: UInt64) -> UInt8 { UInt8(value / 10 << 4 | value % 10) }

  /// The Gregorian date `days` after 1970-01-01, by 400-year eras that begin on 1 March.
  static func civil(days: UInt64) -> (year: UInt64, month: UInt64, day: UInt64) {
    let shifted = days + 719_468
    let dayOfEra = shifted % 146_097
    let yearOfEra = (dayOfEra - dayOfEra / 1460 + dayOfEra / 36_524 - dayOfEra / 146_096) / 365
    let dayOfYear = dayOfEra - (365 * yearOfEra + yearOfEra / 4 - yearOfEra / 100)
    let march = (5 * dayOfYear + 2) / 153  // months since March
    let month = march < 10 ? march + 3 : march - 9
    let year = yearOfEra + shifted / 146_097 * 400 + (month <= 2 ? 1 : 0)
    return (year, month, dayOfYear - (153 * march + 2) / 5 + 1)
  }

  public func quiesce() {}
  public func resume() {}

  public func save(to writer: inout StateWriter) {
    writer.section(sectionTag("rtc "), version: 1) { $0.put(index.load(ordering: .relaxed)) }
  }

  public func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError) {
    let saved = try reader.section(sectionTag("rtc "), version: 1) { reader, _ throws(StateError) in
      try reader.get(UInt8.self)
    }
    guard saved <= 0x7f else { throw .invalid("clock register \(saved)") }
    if !isTrial { index.store(saved, ordering: .relaxed) }
  }
}
