import ArgumentParser

/// An amount of memory such as `128M`, `2G` or `65536K`; a bare number is MiB.
struct MemorySize: ExpressibleByArgument, Equatable, Sendable, CustomStringConvertible {
  let bytes: UInt64

  init(bytes: UInt64) { self.bytes = bytes }

  init?(argument: String) {
    let shifts: [Character: UInt64] = ["K": 10, "M": 20, "G": 30, "T": 40]
    guard let last = argument.uppercased().last else { return nil }
    let digits = shifts[last] == nil ? argument[...] : argument.dropLast()
    guard let number = UInt64(digits) else { return nil }
    let (bytes, overflow) = number.multipliedReportingOverflow(by: 1 << (shifts[last] ?? 20))
    guard !overflow else { return nil }
    self.bytes = bytes
  }

  var defaultValueDescription: String { description }
  var description: String { bytes % (1 << 20) == 0 ? "\(bytes >> 20)M" : "\(bytes >> 10)K" }
}
