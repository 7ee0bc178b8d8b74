#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <link.h>
#include <malloc.h>
#include <pthread.h>
#include <pwd.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int lx_gettid(void) { return (int)syscall(SYS_gettid); }
void lx_set_thread_name(const char *name) { prctl(PR_SET_NAME, name); }
int lx_thread_start(pthread_t *thread, void *(*body)(void *), void *context) {
  return -pthread_create(thread, NULL, body, context);
}
void lx_thread_urgent(void) {
  struct sched_param parameters = {.sched_priority = 1};
  sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &parameters);
}
void lx_thread_prefer(void) {
  errno = 0;
  int nice = getpriority(PRIO_PROCESS, 0);
  if (errno == 0) setpriority(PRIO_PROCESS, 0, nice - 9);
}
int lx_thread_join(pthread_t thread) { return -pthread_join(thread, NULL); }
void lx_thread_limit_cpus(pthread_t thread, int count) {
  cpu_set_t all, some;
  if (sched_getaffinity(getpid(), sizeof all, &all) < 0) return;
  CPU_ZERO(&some);
  for (int cpu = 0, taken = 0; cpu < CPU_SETSIZE && (count == 0 || taken < count); cpu++) {
    if (!CPU_ISSET(cpu, &all)) continue;
    CPU_SET(cpu, &some);
    taken++;
  }
  pthread_setaffinity_np(thread, sizeof some, &some);
}
int lx_thread_signal(pthread_t thread, int signal) { return -pthread_kill(thread, signal); }

int lx_kick_signal(void) { return SIGRTMIN; }
static void ignore(int signal) { (void)signal; }
int lx_install_kick_handler(void) {
  struct sigaction action = {.sa_handler = ignore};
  return sigaction(SIGRTMIN, &action, NULL) < 0 ? -errno : 0;
}
int lx_signal_mask(int signal, int block) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  return -pthread_sigmask(block ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
}

int lx_termination_descriptor(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGHUP);
  int result = pthread_sigmask(SIG_BLOCK, &set, NULL);
  if (result) return -result;
  int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

void lx_ignore_write_signals(void) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);
}

int lx_isatty(int fd) { return isatty(fd); }

static struct termios saved_terminal;
static volatile sig_atomic_t raw_descriptor = -1;

void lx_terminal_restore(void) {
  int fd = raw_descriptor;
  if (fd < 0) return;
  raw_descriptor = -1;
  tcsetattr(fd, TCSANOW, &saved_terminal);
}

static void restore_and_die(int number) {
  lx_terminal_restore();
  signal(number, SIG_DFL);
  raise(number);
}

int lx_terminal_raw(int fd) {
  if (tcgetattr(fd, &saved_terminal) < 0) return -errno;
  struct termios raw = saved_terminal;
  cfmakeraw(&raw);
  // The VMM's own lines, and guests that send bare line feeds, should still start at column 0.
  raw.c_oflag |= OPOST | ONLCR;
  raw_descriptor = fd;
  if (tcsetattr(fd, TCSANOW, &raw) < 0) {
    raw_descriptor = -1;
    return -errno;
  }
  atexit(lx_terminal_restore);
  static const int fatal[] = {SIGINT, SIGHUP, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV};
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) {
    struct sigaction action = {.sa_handler = restore_and_die, .sa_flags = SA_RESETHAND};
    sigaction(fatal[i], &action, NULL);
  }
  return 0;
}

int lx_drop_privileges(const char *user) {
  errno = 0;
  char *end;
  unsigned long number = strtoul(user, &end, 10);
  struct passwd *entry = *user && !*end ? getpwuid((uid_t)number) : getpwnam(user);
  uid_t uid;
  gid_t gid;
  if (entry) {
    uid = entry->pw_uid;
    gid = entry->pw_gid;
  } else if (*user && !*end) {
    uid = (uid_t)number;
    gid = (gid_t)number;
  } else {
    return -ENOENT;
  }
  if (setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 || setresuid(uid, uid, uid) < 0) return -errno;
  // A process that stays root loses its capabilities all the same.
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[2] = {0};
  return syscall(SYS_capset, &header, none) < 0 ? -errno : 0;
}

int lx_no_new_privileges(void) { return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0; }

const unsigned long lx_ioctl_tun_offload = TUNSETOFFLOAD;
const unsigned long lx_ioctl_tcgets = TCGETS;
const unsigned long lx_ioctl_tcsets = TCSETS;

int lx_seccomp_load(const void *program, size_t count) {
  struct sock_fprog filter = {.len = (unsigned short)(count / sizeof(struct sock_filter)), .filter = (struct sock_filter *)program};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) < 0 ? -errno : 0;
}

static int sigsys_exit_code;

static char *append(char *at, char *end, const char *text) {
  while (*text && at < end) *at++ = *text++;
  return at;
}

static void on_sigsys(int signal, siginfo_t *info, void *context) {
  (void)signal;
  (void)context;
  char name[17] = {0}, line[160], digits[12], *at = line, *end = line + sizeof line - 1;
  prctl(PR_GET_NAME, name);
  int number = info->si_syscall, length = 0;
  do digits[length++] = (char)('0' + number % 10);
  while ((number /= 10) > 0 && length < 11);
  at = append(at, end, "minivmm: thread ");
  at = append(at, end, name);
  at = append(at, end, ": its seccomp filter denied system call ");
  const char *known = lx_syscall_name(info->si_syscall);
  if (known) {
    at = append(at, end, known);
    at = append(at, end, " (");
  }
  while (length > 0 && at < end) *at++ = digits[--length];
  at = append(at, end, known ? ")" : "");
  at = append(at, end, "; run with --seccomp log to find what else it needs, and report it\n");
  ssize_t ignored = write(STDERR_FILENO, line, (size_t)(at - line));
  (void)ignored;
  lx_terminal_restore();
  _exit(sigsys_exit_code);
}

int lx_install_sigsys_handler(int exit_code) {
  sigsys_exit_code = exit_code;
  struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO};
  return sigaction(SIGSYS, &action, NULL) < 0 ? -errno : 0;
}

// Only the calls a VMM thread could plausibly meet: a handler can't ask libseccomp, which allocates.
const char *lx_syscall_name(int number) {
#define NAME(call) case SYS_##call: return #call;
  switch (number) {
    NAME(read) NAME(write) NAME(open) NAME(openat) NAME(close) NAME(stat) NAME(fstat) NAME(newfstatat) NAME(lseek)
    NAME(mmap) NAME(mprotect) NAME(munmap) NAME(mremap) NAME(brk) NAME(madvise) NAME(rt_sigaction) NAME(rt_sigprocmask)
    NAME(ioctl) NAME(pread64) NAME(pwrite64) NAME(readv) NAME(writev) NAME(preadv2) NAME(pwritev2) NAME(socket)
    NAME(connect) NAME(bind) NAME(listen) NAME(accept4) NAME(sendmsg) NAME(recvmsg) NAME(sendto) NAME(recvfrom)
    NAME(clone) NAME(clone3) NAME(fork) NAME(vfork) NAME(execve) NAME(execveat) NAME(exit) NAME(exit_group) NAME(kill)
    NAME(tgkill) NAME(futex) NAME(epoll_wait) NAME(epoll_pwait) NAME(epoll_ctl) NAME(eventfd2) NAME(timerfd_create)
    NAME(timerfd_settime) NAME(fallocate) NAME(ftruncate) NAME(fsync) NAME(fdatasync) NAME(unlink) NAME(rename)
    NAME(getrandom) NAME(memfd_create) NAME(prctl) NAME(ptrace) NAME(poll) NAME(ppoll) NAME(sched_yield)
    NAME(clock_nanosleep) NAME(nanosleep) NAME(getpid) NAME(gettid) NAME(fcntl) NAME(dup) NAME(dup2) NAME(pipe2)
    NAME(setuid) NAME(setgid) NAME(setresuid) NAME(setresgid) NAME(capset) NAME(mount) NAME(chroot) NAME(reboot)
    NAME(seccomp) NAME(rseq) NAME(set_robust_list) NAME(sigaltstack) NAME(readlink) NAME(access) NAME(statx)
    NAME(clock_gettime) NAME(gettimeofday) NAME(getrusage) NAME(prlimit64) NAME(sched_getaffinity) NAME(io_uring_setup)
    default: return NULL;
  }
#undef NAME
}

static int release_object(struct dl_phdr_info *info, size_t size, void *context) {
  (void)size;
  (void)context;
  uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
    if (segment->p_type != PT_LOAD || segment->p_flags & PF_W) continue;
    uintptr_t start = (info->dlpi_addr + segment->p_vaddr) & -page;
    uintptr_t end = (info->dlpi_addr + segment->p_vaddr + segment->p_filesz) & -page;
    if (start < end) madvise((void *)start, end - start, MADV_DONTNEED);
  }
  return 0;
}

int lx_die_with_parent(int parent) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0) return -errno;
  // It may have died before.
  return getppid() == parent ? 0 : -ESRCH;
}

int lx_spawn_self(char *const arguments[], int standard_error, int descriptor) {
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  sigset_t none;
  sigemptyset(&none);
  int result = -posix_spawn_file_actions_init(&actions);
  if (result) return result;
  result = -posix_spawnattr_init(&attributes);
  if (result) goto no_attributes;
  result = -posix_spawnattr_setsigmask(&attributes, &none);
  if (!result) result = -posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  if (!result) result = -posix_spawn_file_actions_adddup2(&actions, standard_error, 2);
  if (!result) result = -posix_spawn_file_actions_adddup2(&actions, descriptor, 3);
  pid_t process = 0;
  if (!result) result = -posix_spawn(&process, "/proc/self/exe", &actions, &attributes, arguments, environ);
  if (!result) result = process;
  posix_spawnattr_destroy(&attributes);
no_attributes:
  posix_spawn_file_actions_destroy(&actions);
  return result;
}

int lx_pidfd(int process) {
  int fd = (int)syscall(SYS_pidfd_open, process, 0);
  return fd < 0 ? -errno : fd;
}

int lx_signal_process(int process, int signal) { return kill(process, signal) < 0 ? -errno : 0; }

int lx_exit_code(int process) {
  int status;
  pid_t got = waitpid(process, &status, WNOHANG);
  if (got <= 0) return got < 0 ? -errno : -EAGAIN;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int lx_pipe(int ends[2]) { return pipe2(ends, O_CLOEXEC) < 0 ? -errno : 0; }

void lx_trim_heap(void) { malloc_trim(0); }
void lx_release_program_pages(void) { dl_iterate_phdr(release_object, NULL); }
