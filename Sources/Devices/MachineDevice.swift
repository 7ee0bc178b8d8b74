public import StateCodec

/// A device whose state belongs to the machine: what a snapshot or a checkpoint has to carry.
///
/// Order of a save: vCPUs stopped, device thread parked, ``quiesce()`` if nothing is to be in flight, ``save(to:)``. Before that,
/// while all of them run, it may be saved in vain. Order of a
/// restore: a machine of the same shape, nothing running, ``restore(from:)``, guest RAM already in place, then ``resume()``,
/// after which what was in flight is done again.
public protocol MachineDevice: AnyObject, Sendable {
  /// Short and unique in its machine, such as "net0": names the device in messages and pairs saved state with it.
  var name: String { get }
  /// Starts the device's own threads, as the machine's start. Once.
  func start() throws(HostError)
  /// Finishes what is in flight on other threads (disk requests): none of it reaches guest RAM or a disk afterwards.
  func quiesce()
  /// From any thread, at any time: takes what locks it needs, and changes nothing, guest RAM included.
  func save(to writer: inout StateWriter)
  /// Takes in what ``save(to:)`` has written.
  /// - Parameter isTrial: nothing changes, whatever thread asks: it is only said whether that would be refused.
  func restore(from reader: inout StateReader, isTrial: Bool) throws(StateError)
  /// Looks at everything that may have happened meanwhile: queues with new buffers, host back ends with data.
  func resume()
}

extension MachineDevice {
  public func start() throws(HostError) {}

  public func restore(from reader: inout StateReader) throws(StateError) {
    try restore(from: &reader, isTrial: false)
  }
}
