import ArgumentParser
import CLinux
import Synchronization

/// For a process that belongs to `minivmm pair`.
struct ChildOptions: ParsableArguments {
  @Option(help: .hidden)
  var parent: Int32?

  private static let kept = Mutex<Int32?>(nil)

  /// This process ends with its parent.
  func apply() throws {
    Self.kept.withLock { $0 = parent }
    try Self.keep()
  }

  static var isChild: Bool { kept.withLock { $0 != nil } }

  /// To be called again after a change of user, which makes the kernel forget.
  static func keep() throws {
    guard let parent = kept.withLock({ $0 }) else { return }
    guard lx_die_with_parent(parent) == 0 else {
      throw Failure("the process that started this one has ended; --parent is for `minivmm pair` only", .osError)
    }
  }
}
