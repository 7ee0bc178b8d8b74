// What the test harness needs of Linux that Swift can't call.
#pragma once
#include <spawn.h>
#include <stdint.h>

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
