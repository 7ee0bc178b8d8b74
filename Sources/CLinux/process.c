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

static int signal_descriptor(const sigset_t *set) {
  int result = pthread_sigmask(SIG_BLOCK, set, NULL);
  if (result) return -result;
  int fd = signalfd(-1, set, SFD_CLOEXEC | SFD_NONBLOCK);
  return fd < 0 ? -errno : fd;
}

int lx_termination_descriptor(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  // Not where it is ignored, as under nohup: a blocked signal is taken all the same.
  struct sigaction hangup;
  if (sigaction(SIGHUP, NULL, &hangup) || hangup.sa_handler != SIG_IGN) sigaddset(&set, SIGHUP);
  return signal_descriptor(&set);
}

int lx_continue_descriptor(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCONT);
  return signal_descriptor(&set);
}

void lx_signal_take(int fd) {
  struct signalfd_siginfo taken;
  while (read(fd, &taken, sizeof taken) > 0) {
  }
}

void lx_ignore_signals(void) {
  static const int ignored[] = {SIGPIPE, SIGXFSZ, SIGTTIN, SIGTTOU};
  for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++) signal(ignored[i], SIG_IGN);
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

int lx_seccomp_load(const void *program, size_t count) {
  struct sock_fprog filter = {.len = (unsigned short)(count / sizeof(struct sock_filter)), .filter = (struct sock_filter *)program};
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) < 0 ? -errno : 0;
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

// glibc opens a new arena for each thread that allocates, and from the ninth on looks up the number of CPUs.
void lx_limit_arenas(void) { mallopt(M_ARENA_MAX, 8); }
void lx_trim_heap(void) { malloc_trim(0); }
void lx_release_program_pages(void) { dl_iterate_phdr(release_object, NULL); }
