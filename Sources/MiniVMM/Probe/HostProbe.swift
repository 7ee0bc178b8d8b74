internal import CKVM
internal import CLinux
internal import Glibc
internal import GuestMemory

/// One thing `minivmm doctor` looked at.
public struct Finding: Sendable, Equatable {
  public enum Verdict: String, Sendable {
    case ok
    /// Works, with a consequence worth knowing.
    case note
    /// Something minivmm needs is missing.
    case problem
  }

  public let name: String
  public let verdict: Verdict
  public let text: String
  /// What to do about it; nil when nothing needs doing.
  public let cure: String?

  init(_ name: String, _ verdict: Verdict, _ text: String, cure: String? = nil) {
    self.name = name
    self.verdict = verdict
    self.text = text
    self.cure = cure
  }
}

/// Finds out what this host offers, by asking KVM and by running very small guests. No special case is made by name:
/// what matters is how the host behaves.
public enum HostProbe {
  /// Every finding, the most important first. Takes about a second.
  public static func run() -> [Finding] {
    var findings: [Finding] = []
    do throws(KVMError) {
      let system = try KVMSystem()
      findings.append(Finding("/dev/kvm", .ok, "opens; API version 12"))
      findings += capabilities(system)
      findings += properties(system)
    } catch {
      findings.append(Finding("/dev/kvm", .problem, "\(error)"))
    }
    findings += [hugePages(), tun()]
    return findings
  }

  /// Whether a kernel file can be booted, as far as loading it tells.
  public static func kernelFile(_ path: String) -> Finding {
    let descriptor = unsafe lx_open(path, O_RDONLY, 0)
    guard descriptor >= 0 else {
      return Finding(
        "kernel file", .problem, "cannot open \(path): \(unsafe String(cString: lx_strerror(-descriptor)))",
        cure: "correct the path, or build a guest: guests/linux/build")
    }
    defer { lx_close(descriptor) }
    let scratch: GuestMemory
    do throws(GuestMemoryError) { scratch = try GuestMemory(size: 1 << 30) } catch {
      return Finding("kernel file", .note, "not looked at: \(error)")
    }
    do throws(BootError) {
      _ = try BootSource(kernel: descriptor).load(into: scratch, cpus: 1)
      return Finding("kernel file", .ok, "\(path) loads")
    } catch { return Finding("kernel file", .problem, "\(path): \(error)") }
  }

  /// Whether KVM goes by old page tables after user space has overwritten them. True when it can't be found out.
  public static func translationsGoStale() -> Bool {
    do throws(KVMError) {
      let system = try KVMSystem()
      do throws(ProbeError) { return try TinyGuest.translationsGoStale(system) } catch { return true }
    } catch { return true }
  }

  private static func capabilities(_ system: KVMSystem) -> [Finding] {
    Capability.optional.map { optional in
      let value = system.capability(optional.capability)
      return value > 0
        ? Finding(optional.capability.name, .ok, "\(value)")
        : Finding(optional.capability.name, .note, "absent: \(optional.without)")
    } + [
      Finding("KVM_CAP_MAX_VCPUS", .ok, "\(system.capability(.maximumVCPUs))"),
      Finding("processors", .ok, "\(sysconf(CInt(_SC_NPROCESSORS_ONLN))) online"),
    ]
  }

  private static func hugePages() -> Finding {
    let (free, total) = (GuestMemory.hugePages("free_hugepages"), GuestMemory.hugePages("nr_hugepages"))
    let reserved = "\(free) of \(total) reserved ones are free for --hugepages"
    guard !GuestMemory.givesHugePages else {
      return Finding("huge pages", .ok, "given as guests touch RAM; \(reserved)")
    }
    return Finding(
      "huge pages", .note, "not given to guests by themselves, which makes their memory slower; \(reserved)",
      cure: "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled")
  }

  private static func tun() -> Finding {
    let fd = unsafe lx_open("/dev/net/tun", O_RDWR, 0)
    guard fd >= 0 else {
      let reason = unsafe String(cString: lx_strerror(-fd))
      return Finding(
        "/dev/net/tun", .note, "cannot be opened (\(reason)): no tap network cards",
        cure: fd == -EACCES ? "run as root, or give this user the tap" : "modprobe tun")
    }
    lx_close(fd)
    return Finding("/dev/net/tun", .ok, "opens: tap network cards work")
  }

  private static func properties(_ system: KVMSystem) -> [Finding] {
    do throws(ProbeError) {
      let (kernel, user) = (try TinyGuest.speed(system, ring: 0), try TinyGuest.speed(system, ring: 3))
      let exit = try TinyGuest.exitCost(system)
      let hides = try TinyGuest.cpuidCanHide(system)
      let sets = try TinyGuest.counterCanBeSet(system)
      let stale = try TinyGuest.translationsGoStale(system)
      return [
        kernelCode(kernel, user),
        Finding("exit", .ok, "\(rounded(exit)) µs for a port I/O exit and re-entry"),
        hides
          ? Finding("CPUID", .ok, "features can be hidden from a guest")
          : Finding(
            "CPUID", .note, "features can't be hidden: KVM shows the host's bits whatever it is told",
            cure: "pass clearcpuid= to Linux guests, as guests/linux does"),
        sets
          ? Finding("counter", .ok, "a restored guest's time stamp counter continues")
          : Finding(
            "counter", .note,
            "guests see the host's time stamp counter: it jumps when a snapshot is restored (kvmclock and timers do not)",
            cure: "let guests keep time by kvmclock, as Linux does by itself"),
        stale
          ? Finding(
            "translations", .note,
            "stale after user space overwrites page tables (shadow paging): loading state into a live machine "
              + "deletes and re-adds its memslots")
          : Finding("translations", .ok, "follow page tables that user space overwrites"),
      ]
    } catch {
      return [Finding("tiny guests", .problem, "\(error)", cure: "report this with the output of uname -a")]
    }
  }

  /// Speeds in millions of instructions a second. Both are slow where the host is itself emulated, which is another matter than a KVM
  /// that interprets one of them: that takes about a hundred times as long, and other causes do not make ten of it.
  static func kernelCode(_ kernel: Double, _ user: Double) -> Finding {
    let speeds = "\(rounded(kernel)) million instructions a second at CPL 0, \(rounded(user)) at CPL 3"
    guard kernel * 10 < user else { return Finding("kernel code", .ok, "native: \(speeds)") }
    return Finding(
      "kernel code", .note,
      "interpreted: \(speeds); a Linux guest takes seconds to boot, and benchmarks of the VMM need a guest that works at CPL 3",
      cure: "use a host with VMX or SVM if you can")
  }

  private static func rounded(_ value: Double) -> String {
    value >= 100 ? "\(Int(value))" : "\((value * 10).rounded() / 10)"
  }
}

enum ProbeError: Error, CustomStringConvertible {
  case kvm(KVMError)
  case memory(GuestMemoryError)
  case unexpectedExit(Int32)

  var description: String {
    switch self {
    case .kvm(let error): "a probe guest could not run: \(error)"
    case .memory(let error): "\(error)"
    case .unexpectedExit(let reason): "a probe guest stopped with KVM exit \(reason)"
    }
  }
}
