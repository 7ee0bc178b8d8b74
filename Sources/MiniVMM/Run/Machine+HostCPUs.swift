internal import CLinux
internal import Devices

extension Machine {
  /// Has all vCPU threads share `count` of the host's CPUs, so that at most as many of them run at once: the host's scheduler
  /// switches between them when one halts or its time is over. Nil gives them back what the process has.
  public func limitHostCPUs(_ count: Int?) { forEachVCPUThread { $0.limitHostCPUs(count ?? 0) } }
}
