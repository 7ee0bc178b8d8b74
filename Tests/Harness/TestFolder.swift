import Foundation

/// A folder for one test's files, which goes with it.
public final class TestFolder: Sendable {
  public let url = FileManager.default.temporaryDirectory.appending(path: "minivmm-test-\(UUID())")

  public init() {
    // What fails here fails again where the folder is used.
    try? FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
  }

  deinit { try? FileManager.default.removeItem(at: url) }

  public func path(_ name: String) -> String { url.appending(path: name).path }
}
