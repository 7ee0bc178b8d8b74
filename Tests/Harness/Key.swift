import Foundation

/// Writes a fresh key for a pair to `path`, for its owner alone; the folder is made too.
public func makeKey(_ path: String) throws {
  let folder = URL(filePath: path).deletingLastPathComponent()
  try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  let bytes = Data((0..<32).map { _ in UInt8.random(in: 0...255) })
  guard FileManager.default.createFile(atPath: path, contents: bytes, attributes: [.posixPermissions: 0o600]) else {
    throw HarnessError("cannot write \(path)")
  }
}
