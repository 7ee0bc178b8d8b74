internal import CKVM
internal import CLinux
internal import CSeccomp
internal import Glibc

/// What a thread does that breaks its list.
public enum SeccompMode: String, CaseIterable, Sendable {
  /// One line that names thread and call, then the process ends with its own exit code.
  case kill
  /// Allowed, and noted in the kernel log: for finding out what a list lacks.
  case log
  /// The call fails with EPERM.
  case errno
  case off
}

public enum SeccompError: Error, Equatable, Sendable, CustomStringConvertible {
  case build(thread: String, errno: Int32)
  case load(thread: String, errno: Int32)

  public var description: String {
    switch self {
    case .build(let thread, let error):
      "cannot build the seccomp filter of \(thread) threads: \(unsafe String(cString: lx_strerror(error))); run with --seccomp off"
    case .load(let thread, let error):
      "cannot load the seccomp filter of \(thread) threads: \(unsafe String(cString: lx_strerror(error))); "
        + "does this kernel have CONFIG_SECCOMP_FILTER? Run with --seccomp off"
    }
  }
}

/// The system calls each kind of thread may make: everything else is denied.
///
/// Built before the guest runs; a thread loads its own first thing. Filters go to the kernel as BPF made once per kind.
public struct SeccompFilters: Sendable {
  public enum ThreadKind: String, CaseIterable, Sendable {
    case vcpu, device, disk, control
    /// The threads of a pair: what speaks to the other host, and makes and moves the machine by what it hears.
    case pair
  }

  private var programs: [ThreadKind: [UInt8]] = [:]

  /// - Parameter exitCode: what ``SeccompMode/kill`` ends the process with.
  /// - Parameter reconnects: device threads may connect unix sockets, as that of a card whose peer has gone.
  public init(mode: SeccompMode, exitCode: Int32, reconnects: Bool = false) throws(SeccompError) {
    guard mode != .off else { return }
    let result = lx_no_new_privileges()
    guard result == 0 else { throw .load(thread: "all", errno: -result) }
    if mode == .kill { lx_install_sigsys_handler(exitCode) }
    for kind in ThreadKind.allCases {
      programs[kind] = try Self.build(kind, mode, reconnects: reconnects && kind == .device)
    }
  }

  /// Restricts the calling thread from here on. Without filters (mode off) nothing happens.
  public func load(_ kind: ThreadKind) throws(SeccompError) {
    guard let program = programs[kind] else { return }
    // Each thread's own: one that is older than the filters has not inherited it.
    let privileges = lx_no_new_privileges()
    guard privileges == 0 else { throw .load(thread: kind.rawValue, errno: -privileges) }
    let result = unsafe program.withUnsafeBytes { unsafe lx_seccomp_load($0.baseAddress, $0.count) }
    guard result == 0 else { throw .load(thread: kind.rawValue, errno: -result) }
  }

  // MARK: The lists

  /// Memory, locks, signals and the end of a thread: what the Swift and C runtimes need anywhere.
  private static let common = [
    "read", "write", "readv", "writev", "close", "futex", "mmap", "munmap", "mprotect", "mremap", "madvise", "brk",
    "rt_sigprocmask", "rt_sigreturn", "rt_sigaction", "sigaltstack", "restart_syscall", "poll", "ppoll", "gettid",
    "getpid", "tgkill", "clock_gettime", "gettimeofday", "sched_yield", "getrandom", "set_robust_list", "rseq", "exit",
    "exit_group", "prctl",
    // glibc's malloc asks for the number of CPUs when another thread allocates for the first time, and memory lacks.
    "sched_getaffinity",
    // What ends a thread puts the terminal back first.
    "getpgrp",
  ]

  private static func calls(_ kind: ThreadKind) -> [String] {
    switch kind {
    // epoll_ctl: a driver that starts or resets its network card changes what the device thread waits for.
    case .vcpu: common + ["epoll_ctl"]
    case .device:
      common + [
        "epoll_wait", "epoll_pwait", "epoll_ctl", "preadv2", "pwritev2", "sendto", "sendmsg", "recvfrom", "recvmsg",
        "timerfd_settime",
      ]
    case .disk: common + ["preadv2", "pwritev2", "pread64", "pwrite64", "fdatasync", "fallocate"]
    // The threads that a pair's start inherit its list, a secondary's vCPUs among them, so that it holds theirs as well.
    case .pair:
      common + [
        "epoll_wait", "epoll_pwait", "epoll_ctl", "epoll_create1", "eventfd2", "timerfd_create", "timerfd_settime",
        "preadv2", "pwritev2", "pread64", "pwrite64", "lseek", "fstat", "newfstatat", "ftruncate", "fdatasync",
        "fallocate", "memfd_create", "fcntl", "openat", "socket", "connect", "bind", "getsockname", "getpeername",
        "setsockopt", "accept4", "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "shutdown", "clone", "clone3",
        "sched_setscheduler", "sched_setaffinity", "getpriority", "setpriority", "clock_nanosleep",
        "seccomp", "uname", "getuid", "geteuid",
      ]
    case .control:
      common + [
        "accept4", "sendto", "sendmsg", "recvfrom", "recvmsg", "epoll_ctl", "epoll_wait", "epoll_pwait", "lseek",
        "fstat", "newfstatat", "pread64", "pwrite64", "fsync", "fdatasync", "unlink", "shutdown", "timerfd_settime",
        "clock_nanosleep", "getrusage",
      ]
    }
  }

  /// ioctl is many calls: only these requests pass.
  private static func requests(_ kind: ThreadKind) -> [UInt] {
    let run: [KVMRequest] = [.run, .getRegs, .getSregs, .translate, .resetDirtyRings, .kvmclockCtrl]
    let common = [UInt(lx_ioctl_tcsets), UInt(lx_ioctl_terminal_group)]
    switch kind {
    case .vcpu: return common + run.map { UInt($0.rawValue) } + [UInt(lx_ioctl_tun_offload)]
    case .device: return common + [UInt(lx_ioctl_tun_offload)]
    // The C library asks how long an answer of the name service is.
    case .pair: return common + [UInt(lx_ioctl_tun_offload), UInt(FIONREAD)]
    case .disk: return common
    case .control: return common + [UInt(lx_ioctl_tcgets)]
    }
  }

  /// Opening a file to read it fails, where other denied calls end the process: glibc's malloc looks at
  /// /proc/sys/vm/overcommit_memory when it first gives memory of a thread's heap back, and does without.
  private static func refuseReading(
    _ filter: scmp_filter_ctx, _ failed: (CInt) -> SeccompError
  ) throws(SeccompError) {
    let number = unsafe seccomp_syscall_resolve_name("openat")
    var rule = scmp_arg_cmp(arg: 2, op: SCMP_CMP_EQ, datum_a: UInt64(O_RDONLY | O_CLOEXEC), datum_b: 0)
    let result = unsafe seccomp_rule_add_array(filter, mv_seccomp_eperm, number, 1, &rule)
    guard result == 0 else { throw failed(result) }
  }

  /// Compiles a kind's list to BPF, by way of a memfd.
  private static func build(
    _ kind: ThreadKind, _ mode: SeccompMode, reconnects: Bool
  ) throws(SeccompError) -> [UInt8] {
    func failed(_ result: CInt) -> SeccompError { .build(thread: kind.rawValue, errno: -result) }
    let denied = [SeccompMode.kill: mv_seccomp_trap, .log: mv_seccomp_log][mode] ?? mv_seccomp_eperm
    guard let filter = unsafe seccomp_init(denied) else { throw failed(-ENOMEM) }
    defer { unsafe seccomp_release(filter) }
    for name in calls(kind) {
      let number = unsafe seccomp_syscall_resolve_name(name)
      // Not every architecture has every call.
      guard number >= 0 else { continue }
      let result = unsafe seccomp_rule_add_array(filter, mv_seccomp_allow, number, 0, nil)
      guard result == 0 else { throw failed(result) }
    }
    let ioctlNumber = unsafe seccomp_syscall_resolve_name("ioctl")
    var rules = requests(kind).map { scmp_arg_cmp(arg: 1, op: SCMP_CMP_EQ, datum_a: UInt64($0), datum_b: 0) }
    // These make, save and restore machines: any of KVM's requests (_IOC type 0xae).
    if kind == .control || kind == .pair {
      rules.append(scmp_arg_cmp(arg: 1, op: SCMP_CMP_MASKED_EQ, datum_a: 0xff00, datum_b: 0xae00))
    }
    for var rule in rules {
      let result = unsafe seccomp_rule_add_array(filter, mv_seccomp_allow, ioctlNumber, 1, &rule)
      guard result == 0 else { throw failed(result) }
    }
    if reconnects {
      var family = scmp_arg_cmp(arg: 0, op: SCMP_CMP_EQ, datum_a: UInt64(AF_UNIX), datum_b: 0)
      let socket = unsafe seccomp_syscall_resolve_name("socket")
      let connect = unsafe seccomp_syscall_resolve_name("connect")
      for result in unsafe [
        seccomp_rule_add_array(filter, mv_seccomp_allow, socket, 1, &family),
        seccomp_rule_add_array(filter, mv_seccomp_allow, connect, 0, nil),
      ] { guard result == 0 else { throw failed(result) } }
    }
    if mode == .kill, !calls(kind).contains("openat") { try unsafe refuseReading(filter, failed) }
    let file = unsafe lx_memfd_plain("seccomp")
    guard file >= 0 else { throw failed(file) }
    defer { lx_close(file) }
    let result = unsafe seccomp_export_bpf(filter, file)
    let size = lx_file_size(file)
    guard result == 0, size > 0 else { throw failed(result == 0 ? -EIO : result) }
    var program = [UInt8](repeating: 0, count: Int(size))
    let got = unsafe program.withUnsafeMutableBytes { unsafe lx_pread(file, $0.baseAddress, $0.count, 0) }
    guard got == program.count else { throw failed(-EIO) }
    return program
  }
}
