internal import CKVM
public import GuestMemory

extension Machine {
  /// Adds every page that the guest or the VMM has written since the last call (or since the machine was made), and
  /// watches them again. The machine is paused; a caller that harvests a running one gets pages that are still being
  /// written, and gets those again next time.
  /// - Throws: ``MachineError/wrongPhase(_:)`` when the machine was made without ``Configuration/dirtyTracking``.
  public func harvestDirtyPages(into pages: inout PageSet) throws(MachineError) {
    guard let dirtySource else { throw .wrongPhase("this machine was made without dirty tracking") }
    do throws(KVMError) { try dirtySource.harvest(into: &pages) } catch { throw .kvm(error) }
    memory.dirty.harvest(into: &pages)
  }

  /// Makes KVM forget every translation of guest addresses it has cached. Needed after page tables were overwritten from
  /// outside on hosts whose KVM shadows them; costs about 100 µs there. The machine is paused.
  /// - Parameter pages: gets the pages dirty until now, which would be forgotten too.
  public func refreshTranslations(harvestingInto pages: inout PageSet) throws(MachineError) {
    guard isHalted else { throw .wrongPhase("translations are refreshed while the machine is paused") }
    if dirtySource != nil { try harvestDirtyPages(into: &pages) }
    do throws(KVMError) { try machine.refreshTranslations(logDirtyPages: dirtySource != nil) } catch {
      throw .kvm(error)
    }
  }
}
