// Linux system calls for Swift: every wrapper returns a result >= 0, or -errno, so that no call of ours can change errno
// between the system call and its reading. EINTR is returned as it is; callers that sleep decide what it means.
#pragma once
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
// Swift's Glibc module sees fd_set without X/Open names; both modules must agree on its one field.
#include <features.h>
#undef __USE_XOPEN
#include <sys/select.h>
#define __USE_XOPEN 1
#include <linux/falloc.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <pthread.h>
#include <signal.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <termios.h>

// --- files
/// openat(AT_FDCWD) with O_CLOEXEC added.
int lx_open(const char *path, int flags, int mode);
int lx_close(int fd);
ssize_t lx_read(int fd, void *buffer, size_t count);
ssize_t lx_write(int fd, const void *buffer, size_t count);
ssize_t lx_pread(int fd, void *buffer, size_t count, int64_t offset);
ssize_t lx_pwrite(int fd, const void *buffer, size_t count, int64_t offset);
ssize_t lx_readv(int fd, const struct iovec *vector, int count);
ssize_t lx_writev(int fd, const struct iovec *vector, int count);
/// preadv2/pwritev2; `flags` may hold LX_NOWAIT.
ssize_t lx_preadv(int fd, const struct iovec *vector, int count, int64_t offset, int flags);
ssize_t lx_pwritev(int fd, const struct iovec *vector, int count, int64_t offset, int flags);
#define LX_NOWAIT 0x00000008
int lx_fdatasync(int fd);
int lx_fsync(int fd);
int lx_fallocate(int fd, int mode, int64_t offset, int64_t length);
int lx_ftruncate(int fd, int64_t length);
int64_t lx_lseek(int fd, int64_t offset, int whence);
int lx_fstat(int fd, struct stat *out);
/// Size in bytes of a regular file or block device, or -errno (-EINVAL for anything else).
int64_t lx_file_size(int fd);
/// Exclusive or shared advisory lock on the open file (OFD), without waiting: -EAGAIN when another holds it.
int lx_lock_file(int fd, int exclusive);
int lx_set_nonblocking(int fd, int on);
int lx_unlink(const char *path);
int lx_rename(const char *from, const char *to);

// --- memory
/// A sealed-size memfd of `size` bytes.
int lx_memfd(const char *name, uint64_t size);
/// An empty memfd without seals.
int lx_memfd_plain(const char *name);
/// mmap; MAP_FAILED becomes NULL with the error in *error.
void *lx_mmap(size_t length, int protection, int flags, int fd, int64_t offset, int *error);
int lx_munmap(void *address, size_t length);
int lx_madvise(void *address, size_t length, int advice);

// --- events
int lx_eventfd(unsigned initial);
/// Adds 1. Never blocks (EFD_NONBLOCK): a full counter is as good as a signalled one.
void lx_eventfd_signal(int fd);
/// Reads and clears; 0 when it was clear.
uint64_t lx_eventfd_take(int fd);
int lx_epoll_create(void);
/// `operation` is EPOLL_CTL_*; `token` comes back with the event.
int lx_epoll_ctl(int epoll, int operation, int fd, uint32_t events, uint64_t token);
int lx_epoll_wait(int epoll, struct epoll_event *events, int capacity, int timeout_ms);
static inline uint64_t lx_epoll_token(const struct epoll_event *event) { return event->data.u64; }
int lx_timerfd(void);
/// One shot, `nanoseconds` from now; 0 disarms.
int lx_timerfd_arm(int fd, uint64_t nanoseconds);
uint64_t lx_monotonic_ns(void);
/// Monotonic, and counts on while the host is suspended.
uint64_t lx_boottime_ns(void);
uint64_t lx_realtime_ns(void);
/// Fills with random bytes, or -errno.
int lx_getrandom(void *buffer, size_t count);

// --- network
/// The same descriptor by a number of at least 512, where there is one. Of a process that is killed the kernel closes high numbers
/// first; KVM's take it tens of milliseconds. Until then a tap swallows its guest's frames, and a peer sees no end.
int lx_closed_first(int fd);
/// Opens /dev/net/tun and attaches to tap `name` with IFF_NO_PI | IFF_VNET_HDR, header size 12, non-blocking.
/// Returns the descriptor, or -errno; *step names the call that failed (0 open, 1 TUNSETIFF, 2 TUNSETVNETHDRSZ), *kind what the
/// interface is: LX_KIND_* or 0.
int lx_tap_open(const char *name, int *step, int *kind);
#define LX_KIND_TAP 1
#define LX_KIND_TUN 2
/// Makes of a descriptor that is attached to a tap what lx_tap_open returns, and closes it for another number. -errno; *step names
/// what failed: 0 it is no tap (-EBADF), or not with IFF_NO_PI | IFF_VNET_HDR (-EINVAL), 1 fcntl, 2 TUNSETVNETHDRSZ.
int lx_tap_adopt(int fd, int *step);
/// The name of the interface that a descriptor is attached to.
int lx_tap_name(int fd, char name[IFNAMSIZ]);
/// TUNSETOFFLOAD; flags of LX_TAP_*.
int lx_tap_set_offload(int fd, unsigned flags);
#define LX_TAP_CSUM 1u
#define LX_TAP_TSO4 2u
#define LX_TAP_TSO6 4u
/// A unix socket of `type` (SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM), non-blocking, close-on-exec.
int lx_unix_socket(int type);
int lx_unix_connect(int fd, const char *path);
int lx_unix_listen(int fd, const char *path, int backlog);
/// Device and inode at `path`: 1 for a socket, 0 for something else, or -errno.
int lx_unix_identity(const char *path, uint64_t identity[2]);
/// Locks the folder that `path` is in against others that do the same, for as long as the descriptor returned is open; after a second
/// without the lock. -errno for a folder that can't be opened.
int lx_lock_folder(const char *path);
int lx_accept(int fd);
// A TCP socket for "host:port", without Nagle's delay; waits for each of the name's addresses for 1.5 s at the most.
// -EADDRNOTAVAIL when the name can't be resolved.
int lx_tcp_connect(const char *address);
int lx_tcp_listen(const char *address);
int lx_tcp_accept(int fd);
/// The port a socket is bound to, or -errno.
int lx_local_port(int fd);
// A UDP socket that does not block: bound to "host:port", or connected to it.
int lx_udp_listen(const char *address);
int lx_udp_connect(const char *address);
// One that is connected to the address and port to which a TCP socket is.
int lx_udp_connect_beside(int tcp);
/// Where a datagram came from, and which of this host's addresses it was sent to: an answer goes the same way back.
struct lx_udp_peer {
  struct sockaddr_storage address;
  socklen_t size;
  int has_local;
  struct in_addr local4;
  struct in6_addr local6;
  unsigned interface;
};
// For a socket of lx_udp_listen: bytes, or -errno; -ECONNREFUSED when a host says that nobody is there, -EPROTO when something like
// that is said of others than the peer. Without a peer all is believed.
ssize_t lx_udp_receive(int fd, void *buffer, size_t count, struct lx_udp_peer *from, const struct lx_udp_peer *peer);
ssize_t lx_udp_send(int fd, const void *buffer, size_t count, const struct lx_udp_peer *to);
// The kernel drops what does not come from this peer; NULL: nothing.
int lx_udp_only_from(int fd, const struct lx_udp_peer *peer);
// Permission bits of an open file.
int lx_file_mode(int fd);
// Whether an open file is this process's user's, or root's.
int lx_file_is_own(int fd);
int lx_set_file_mode(int fd, int mode);
/// recvmsg of bytes and at most one descriptor (SCM_RIGHTS), others are closed; *received_fd is -1 when there was none.
ssize_t lx_receive_fd(int fd, void *buffer, size_t count, int *received_fd);
ssize_t lx_send_fd(int fd, const void *buffer, size_t count, int sent_fd);
/// send with MSG_NOSIGNAL | MSG_DONTWAIT
ssize_t lx_send(int fd, const void *buffer, size_t count);
ssize_t lx_sendv(int fd, const struct iovec *vector, int count);
ssize_t lx_recv(int fd, void *buffer, size_t count);
ssize_t lx_recvv(int fd, const struct iovec *vector, int count);

// --- threads, signals, process
int lx_gettid(void);
/// Name (15 bytes at most) of the calling thread.
void lx_set_thread_name(const char *name);
/// Starts a joinable pthread that runs body(context). Returns 0 or -errno.
int lx_thread_start(pthread_t *thread, void *(*body)(void *), void *context);
/// Puts the calling thread before all ordinary ones (SCHED_RR, lowest priority): only for one that does next to nothing, as
/// the kernel keeps busy real-time threads from running now and then. Threads that it starts are ordinary. Where that is
/// not allowed, nothing happens.
void lx_thread_urgent(void);
/// Puts the calling thread before its process's others, by nine steps of nice; threads that it starts from now on as well. Where
/// that is not allowed, nothing happens.
void lx_thread_prefer(void);
int lx_thread_join(pthread_t thread);
/// Lets a thread run on the first `count` of the CPUs that the main thread may use; 0 for all of them.
void lx_thread_limit_cpus(pthread_t thread, int count);
/// Has threads share malloc's memory instead of looking up how many CPUs there are. Once, before there are other threads.
void lx_limit_arenas(void);
/// Gives memory that malloc keeps back to the host.
void lx_trim_heap(void);
int lx_thread_signal(pthread_t thread, int signal);
/// The first real-time signal glibc leaves free; MiniVMM kicks vCPU threads with it.
int lx_kick_signal(void);
/// Installs an empty handler (no SA_RESTART) for the kick signal.
int lx_install_kick_handler(void);
/// Blocks (1) or unblocks (0) `signal` in the calling thread.
int lx_signal_mask(int signal, int block);
/// Blocks SIGINT, SIGTERM and SIGHUP in this thread and those it starts, and returns a descriptor readable when one comes.
int lx_termination_descriptor(void);
/// Blocks SIGCONT in this thread and those it starts, and returns a descriptor readable when one comes.
int lx_continue_descriptor(void);
/// Reads all that a signal's descriptor has.
void lx_signal_take(int fd);
/// A reader that goes away, or a file that may not grow, is an error of the write and not the end of the process; a terminal that
/// another process group has does not stop it.
void lx_ignore_signals(void);
int lx_isatty(int fd);
/// Whether this process's group is the terminal's foreground group. Also where there is no job control.
int lx_terminal_is_ours(int fd);
/// Puts terminal `fd` into raw mode and stores what it was; also restores it at exit() and on fatal signals. Again after
/// another process may have set it.
int lx_terminal_raw(int fd);
/// Undoes lx_terminal_raw, where the terminal is ours. Async-signal-safe; makes the system calls getpgrp and ioctl (TIOCGPGRP,
/// TCSETS) alone.
void lx_terminal_restore(void);
/// Signals that end the process restore the terminal and say which thread they came from.
void lx_catch_fatal_signals(void);
/// Gives the calling thread a stack of its own for signal handlers, so that the end of its ordinary one is reported as well. NULL
/// when there is no memory. To be ended by the same thread.
void *lx_signal_stack(void);
void lx_signal_stack_end(void *memory);
/// Drops to `user` (name or numeric uid) and its group, all capabilities gone; -errno, or -ENOENT for an unknown user.
int lx_drop_privileges(const char *user);
int lx_no_new_privileges(void);
/// Kills this process when `parent`, its parent, ends; -ESRCH when it has ended. To be asked for again after a change of
/// user.
int lx_die_with_parent(int parent);
/// Starts this program once more, without blocked signals, with other standard error and with `descriptor` as 3. Returns
/// the process's number.
int lx_spawn_self(char *const arguments[], int standard_error, int descriptor);
/// A descriptor that is readable once the process has ended.
int lx_pidfd(int process);
int lx_signal_process(int process, int signal);
/// The exit code of a child, 128 + signal for one that was killed; -EAGAIN while it runs.
int lx_exit_code(int process);
/// A pipe's ends: to read, to write. Close-on-exec.
int lx_pipe(int ends[2]);
/// A SIGSYS handler that writes one line naming the thread and the system call that a seccomp filter denied, and ends the
/// process with `exit_code`. Async-signal-safe.
int lx_install_sigsys_handler(int exit_code);
/// Unmaps the program's and its libraries' read-only pages: what start-up needed goes, what runs on comes back by a minor
/// fault from the page cache.
void lx_release_program_pages(void);
/// The name of a system call, or NULL; for messages.
const char *lx_syscall_name(int number);
/// Loads a BPF program (`count` bytes of struct sock_filter) as the calling thread's seccomp filter. Needs no new privileges.
int lx_seccomp_load(const void *program, size_t count);
/// TUNSETOFFLOAD, TCGETS, TCSETS, TIOCGPGRP: ioctl numbers that filters name.
extern const unsigned long lx_ioctl_tun_offload, lx_ioctl_tcgets, lx_ioctl_tcsets, lx_ioctl_terminal_group;
/// exit(3): buffered output is written first.
void lx_flush_and_exit(int code) __attribute__((noreturn));
/// _exit(2), with the terminal as it was.
void lx_exit_now(int code) __attribute__((noreturn));
const char *lx_strerror(int error);

// --- hardware help
/// CRC-32C (Castagnoli) of `count` bytes, continuing from `crc` (start with 0). SSE4.2 where the CPU has it.
uint32_t lx_crc32c(uint32_t crc, const void *buffer, size_t count);
/// Whether `count` bytes (a multiple of 64, 64-byte aligned) are all zero.
int lx_is_zero(const void *buffer, size_t count);
