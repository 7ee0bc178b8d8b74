#define _GNU_SOURCE
#include "CHarness.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

// A shell with one job: it owns the session and the terminal, and gives the terminal's foreground as it is told by `orders`
// ('f': to the job, 'b': to itself), until those end.
static void lead(const char *terminal, char *const arguments[], int foreground, int orders, int reports) {
  setsid();
  int slave = open(terminal, O_RDWR);
  if (slave < 0) _exit(125);
  signal(SIGTTOU, SIG_IGN);
  pid_t job = fork();
  if (job == 0) {
    setpgid(0, 0);
    if (foreground) tcsetpgrp(slave, getpid());
    signal(SIGTTOU, SIG_DFL);
    for (int fd = 0; fd < 3; fd++) dup2(slave, fd);
    close_range(3, ~0u, 0);
    execvp(arguments[0], arguments);
    _exit(126);
  }
  setpgid(job, job);
  if (write(reports, &job, sizeof job) != sizeof job) _exit(125);
  for (int ended = 0;;) {
    struct pollfd entry = {.fd = orders, .events = POLLIN};
    char order;
    if (poll(&entry, 1, 20) > 0) {
      if (read(orders, &order, 1) <= 0) break;
      tcsetpgrp(slave, order == 'f' ? job : getpid());
    }
    int status;
    if (!ended && waitpid(job, &status, WNOHANG) == job) {
      ended = 1;
      if (write(reports, &status, sizeof status) != sizeof status) break;
    }
  }
  kill(job, SIGKILL);
  _exit(0);
}

int harness_start_job(char *const arguments[], int foreground, struct harness_job *job) {
  char terminal[64];
  int orders[2], reports[2];
  job->terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (job->terminal < 0 || grantpt(job->terminal) < 0 || unlockpt(job->terminal) < 0) return -errno;
  if (ptsname_r(job->terminal, terminal, sizeof terminal) != 0) return -ENOTTY;
  if (pipe2(orders, O_CLOEXEC) < 0 || pipe2(reports, O_CLOEXEC) < 0) return -errno;
  job->slave = open(terminal, O_RDWR | O_NOCTTY | O_CLOEXEC);
  sigset_t none, before;
  sigemptyset(&none);
  pthread_sigmask(SIG_SETMASK, &none, &before);
  job->shell = fork();
  if (job->shell == 0) {
    static const int reset[] = {SIGPIPE, SIGINT, SIGTERM, SIGHUP};
    for (unsigned i = 0; i < sizeof reset / sizeof *reset; i++) signal(reset[i], SIG_DFL);
    close(orders[1]);
    close(reports[0]);
    lead(terminal, arguments, foreground, orders[0], reports[1]);
  }
  int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  close(orders[0]);
  close(reports[1]);
  job->orders = orders[1];
  job->reports = reports[0];
  if (job->shell < 0) return -error;
  return read(job->reports, &job->process, sizeof job->process) == sizeof job->process ? 0 : -EPIPE;
}

int harness_job_end(struct harness_job *job, int timeout_ms) {
  struct pollfd entry = {.fd = job->reports, .events = POLLIN};
  int status;
  if (poll(&entry, 1, timeout_ms) <= 0 || read(job->reports, &status, sizeof status) != sizeof status) return -1000;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void harness_free_job(struct harness_job *job) {
  close(job->orders);
  waitpid(job->shell, NULL, 0);
  close(job->reports);
  close(job->slave);
  close(job->terminal);
}

int harness_terminal_modes(int terminal, struct termios *modes) { return tcgetattr(terminal, modes) < 0 ? -errno : 0; }

int harness_disturb(int thread, int how) {
  if (ptrace(PTRACE_SEIZE, thread, 0, 0) < 0) return -errno;
  int status;
  struct user_regs_struct registers;
  if (ptrace(PTRACE_INTERRUPT, thread, 0, 0) < 0 || waitpid(thread, &status, __WALL) < 0) return -errno;
  if (ptrace(PTRACE_GETREGS, thread, 0, &registers) < 0) return -errno;
  registers.orig_rax = (unsigned long)-1;
  switch (how) {
    case harness_denied_call:
      // Back to the instruction with which it waits, for another call.
      registers.rip -= 2;
      registers.rax = SYS_mount;
      break;
    case harness_bad_jump: registers.rip = 16; break;
    case harness_no_stack: registers.rsp = 16; break;
  }
  if (ptrace(PTRACE_SETREGS, thread, 0, &registers) < 0) return -errno;
  return ptrace(PTRACE_DETACH, thread, 0, 0) < 0 ? -errno : 0;
}

int harness_signal_thread(int process, int thread, int signal) {
  return syscall(SYS_tgkill, process, thread, signal) < 0 ? -errno : 0;
}

int harness_unix_connect(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
  strcpy(address.sun_path, path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0) return fd;
  int error = errno;
  close(fd);
  return -error;
}

int harness_send_descriptors(int fd, const char *text, const int *descriptors, int count) {
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(64 * sizeof(int))];
  } control = {0};
  if (count > 64) return -EINVAL;
  struct iovec vector = {(void *)text, strlen(text)};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(count * sizeof(int));
  memcpy(CMSG_DATA(header), descriptors, count * sizeof(int));
  return sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? -errno : 0;
}
