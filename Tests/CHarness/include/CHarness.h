// What the test harness needs of Linux that Swift can't call.
#pragma once
#include <spawn.h>
#include <stdint.h>
#include <termios.h>

// glibc shows these under _GNU_SOURCE alone.
int pipe2(int ends[2], int flags);
int posix_spawn_file_actions_addclosefrom_np(posix_spawn_file_actions_t *actions, int from);

/// A socket made inside a network namespace (`path` such as /run/netns/x) and left connected to address:port; -errno on
/// failure. `type` is SOCK_STREAM, SOCK_DGRAM, or SOCK_RAW for ICMPv6 echo replies. The calling thread is back in its own namespace afterwards.
int harness_connect(const char *path, int type, const char *address, uint16_t port, int timeout_ms);
/// Takes checksum and segmentation offloads from an interface inside a namespace: 0 or -errno. The kernel then cuts up and
/// sums what goes through it.
int harness_disable_offloads(const char *path, const char *interface);
/// Sends all and receives until `count` bytes or the deadline; bytes received, or -errno.
int harness_send_all(int fd, const void *bytes, int count);
int harness_receive(int fd, void *bytes, int count, int timeout_ms);
/// A KVM machine without CPUs and memory: a descriptor, or -errno.
int harness_make_machine(void);
/// Gives it a page of memory and takes it away.
void harness_swap_memory(int machine);

/// A program that runs as a job of a shell's, on a terminal of its own.
struct harness_job {
  /// The terminal's other end, and the end that the job has.
  int terminal, slave;
  int orders, reports;
  int shell, process;
};
/// 0 or -errno.
int harness_start_job(char *const arguments[], int foreground, struct harness_job *job);
/// The job's exit code, or -signal; -1000 when it has not ended in time.
int harness_job_end(struct harness_job *job, int timeout_ms);
/// Ends the job and its shell.
void harness_free_job(struct harness_job *job);
int harness_terminal_modes(int terminal, struct termios *modes);

enum harness_disturbance { harness_denied_call, harness_bad_jump, harness_no_stack };
/// Has a thread of another process, one that waits in a system call, go on with mount(2), a jump to nowhere, or a stack that is
/// none: 0 or -errno.
int harness_disturb(int thread, int how);
int harness_signal_thread(int process, int thread, int signal);
/// A connected stream socket that does not block, or -errno.
int harness_unix_connect(const char *path);
/// Sends text with open descriptors (SCM_RIGHTS), 64 at the most: 0 or -errno.
int harness_send_descriptors(int fd, const char *text, const int *descriptors, int count);
