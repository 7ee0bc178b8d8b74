// What tests need of Linux and Swift can't call: namespaces, packet sockets, limits. Results are >= 0 or -errno.
#pragma once
#include <stdint.h>

/// Moves the calling thread into a network namespace of its own, which ends with its last thread and descriptor.
int ts_new_network(void);
/// Makes tap `name`, persistent, in the thread's network namespace.
int ts_make_tap(const char *name);
/// Brings an interface up, without IPv6. A tap that is opened only afterwards loses its first frames.
int ts_set_up(const char *name);
/// Deletes a network interface of the thread's namespace.
int ts_delete_link(const char *name);
/// A non-blocking packet socket on interface `name`: sees what it receives, and sends through it.
int ts_packet_socket(const char *name);
/// Limits the size of files the process may write; SIGXFSZ is ignored.
int ts_limit_file_size(uint64_t bytes);
int ts_mount_tmpfs(const char *path, uint64_t bytes);
int ts_unmount(const char *path);
/// Pages of a file that are not on its disk yet (cachestat, Linux 6.5).
int64_t ts_unwritten_pages(const char *path);
static inline void ts_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
