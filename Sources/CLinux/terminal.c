#define _GNU_SOURCE
#include "CLinux.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int lx_isatty(int fd) { return isatty(fd); }

// The kernel's own struct: tcsetattr() makes other system calls from one glibc to the next, and each would have to be in every
// thread's filter.
struct kernel_termios {
  unsigned input, output, control, local;
  unsigned char discipline, characters[19];
};

static struct kernel_termios saved_terminal;
static volatile sig_atomic_t raw_descriptor = -1;

const unsigned long lx_ioctl_tcgets = TCGETS;
const unsigned long lx_ioctl_tcsets = TCSETS;
const unsigned long lx_ioctl_terminal_group = TIOCGPGRP;

int lx_terminal_is_ours(int fd) {
  pid_t group;
  // Of a terminal that controls no session of ours nobody else has the foreground.
  return ioctl(fd, TIOCGPGRP, &group) < 0 || group == getpgrp();
}

void lx_terminal_restore(void) {
  int fd = raw_descriptor;
  if (fd < 0) return;
  // Another that has the terminal now has set it as it likes.
  if (lx_terminal_is_ours(fd)) ioctl(fd, TCSETS, &saved_terminal);
  // Last: another thread may be about to end the process.
  raw_descriptor = -1;
}

int lx_terminal_raw(int fd) {
  struct kernel_termios now;
  if (ioctl(fd, TCGETS, &now) < 0) return -errno;
  struct kernel_termios raw = now;
  raw.input &= ~(unsigned)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
  raw.local &= ~(unsigned)(ECHO | ECHONL | ICANON | ISIG | IEXTEN);
  raw.control = (raw.control & ~(unsigned)(CSIZE | PARENB)) | CS8;
  raw.characters[VMIN] = 1;
  raw.characters[VTIME] = 0;
  // The VMM's own lines, and guests that send bare line feeds, should still start at column 0.
  raw.output |= OPOST | ONLCR;
  // A terminal that is as we left it was never given back to anybody, who would have set it.
  if (raw_descriptor < 0 || memcmp(&now, &raw, sizeof raw) != 0) saved_terminal = now;
  static int registered;
  if (!registered) atexit(lx_terminal_restore);
  registered = 1;
  raw_descriptor = fd;
  if (ioctl(fd, TCSETS, &raw) == 0) return 0;
  int error = errno;
  raw_descriptor = -1;
  return -error;
}

// --- the process's end by a signal

struct line {
  char text[240];
  size_t length;
};

static void add(struct line *line, const char *text) {
  while (*text && line->length < sizeof line->text) line->text[line->length++] = *text++;
}

static void add_number(struct line *line, int number) {
  char digits[12];
  int at = sizeof digits - 1;
  digits[at] = 0;
  do digits[--at] = (char)('0' + number % 10);
  while ((number /= 10) > 0 && at > 0);
  add(line, digits + at);
}

static void add_thread(struct line *line) {
  char name[17] = {0};
  prctl(PR_GET_NAME, name);
  add(line, "minivmm: thread ");
  add(line, name);
  add(line, ": ");
}

static void say(const struct line *line) {
  ssize_t ignored = write(STDERR_FILENO, line->text, line->length);
  (void)ignored;
}

static void on_fatal(int number, siginfo_t *info, void *context) {
  (void)context;
  lx_terminal_restore();
  struct line line = {.length = 0};
  // The kernel's for what the thread did, or abort()'s. Others send the rest: processes, the terminal, limits of this process.
  int fault = number == SIGSEGV || number == SIGBUS || number == SIGILL || number == SIGFPE || number == SIGTRAP;
  int own = info->si_code > 0 ? fault : info->si_pid == getpid();
  if (own) add_thread(&line);
  else add(&line, "minivmm: ");
  add(&line, "ended by SIG");
  const char *name = sigabbrev_np(number);
  add(&line, name ? name : "?");
  add(&line, own ? ", a fault of minivmm; report it with the lines before this one\n" : ", which came from outside\n");
  say(&line);
  // Blocked as long as this handler runs: it ends the process as this returns.
  signal(number, SIG_DFL);
  raise(number);
}

void lx_catch_fatal_signals(void) {
  static const int fatal[] = {SIGQUIT, SIGILL,    SIGTRAP, SIGABRT, SIGBUS,    SIGFPE,  SIGUSR1, SIGSEGV, SIGUSR2,
                              SIGALRM, SIGSTKFLT, SIGXCPU, SIGPROF, SIGVTALRM, SIGPOLL, SIGPWR};
  for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++) {
    struct sigaction action = {.sa_sigaction = on_fatal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigaction(fatal[i], &action, NULL);
  }
  lx_signal_stack();
}

enum { signal_stack_size = 64 << 10 };

void *lx_signal_stack(void) {
  void *memory = mmap(NULL, signal_stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  stack_t stack = {.ss_sp = memory, .ss_size = signal_stack_size};
  sigaltstack(&stack, NULL);
  return memory;
}

void lx_signal_stack_end(void *memory) {
  if (!memory) return;
  stack_t none = {.ss_flags = SS_DISABLE};
  sigaltstack(&none, NULL);
  munmap(memory, signal_stack_size);
}

static int sigsys_exit_code;
// SYS_SECCOMP of <asm-generic/siginfo.h>, which glibc hides.
enum { denied_by_filter = 1 };

static void on_sigsys(int number, siginfo_t *info, void *context) {
  if (info->si_code != denied_by_filter) return on_fatal(number, info, context);
  struct line line = {.length = 0};
  add_thread(&line);
  add(&line, "its seccomp filter denied system call ");
  const char *known = lx_syscall_name(info->si_syscall);
  if (known) {
    add(&line, known);
    add(&line, " (");
  }
  add_number(&line, info->si_syscall);
  if (known) add(&line, ")");
  add(&line, "; run with --seccomp log to find what else it needs, and report it\n");
  // First, so that the line starts where it should.
  lx_terminal_restore();
  say(&line);
  _exit(sigsys_exit_code);
}

int lx_install_sigsys_handler(int exit_code) {
  sigsys_exit_code = exit_code;
  struct sigaction action = {.sa_sigaction = on_sigsys, .sa_flags = SA_SIGINFO | SA_ONSTACK};
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
