#define _GNU_SOURCE
#include "CHarness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/kvm.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/icmp6.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

struct request {
  const char *path, *address;
  int type, timeout_ms, result;
  uint16_t port;
};

static int enter(const char *path) {
  int space = open(path, O_RDONLY | O_CLOEXEC);
  int result = space < 0 || setns(space, CLONE_NEWNET) < 0 ? -errno : 0;
  if (space >= 0) close(space);
  return result;
}

// On a thread of its own: a namespace belongs to a thread, and this one ends with it.
static int run_inside(void *(*body)(void *), struct request *request) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, body, request)) return -EAGAIN;
  pthread_join(thread, NULL);
  return request->result;
}

static void *connect_inside(void *context) {
  struct request *request = context;
  if ((request->result = enter(request->path)) < 0) return NULL;
  struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = request->type}, *peer;
  char port[8];
  snprintf(port, sizeof port, "%u", request->port);
  if (request->type == SOCK_RAW) hints.ai_protocol = IPPROTO_ICMPV6;
  if (getaddrinfo(request->address, hints.ai_protocol ? NULL : port, &hints, &peer)) {
    request->result = -EINVAL;
    return NULL;
  }
  int fd = socket(peer->ai_family, request->type | SOCK_CLOEXEC, hints.ai_protocol);
  if (request->type == SOCK_RAW) {
    struct icmp6_filter filter;
    ICMP6_FILTER_SETBLOCKALL(&filter);
    ICMP6_FILTER_SETPASS(ICMP6_ECHO_REPLY, &filter);
    setsockopt(fd, IPPROTO_ICMPV6, ICMP6_FILTER, &filter, sizeof filter);
  }
  struct timeval limit = {.tv_sec = request->timeout_ms / 1000, .tv_usec = request->timeout_ms % 1000 * 1000};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (connect(fd, peer->ai_addr, peer->ai_addrlen) < 0) {
    request->result = -errno;
    close(fd);
  } else {
    request->result = fd;
  }
  freeaddrinfo(peer);
  return NULL;
}

int harness_connect(const char *path, int type, const char *address, uint16_t port, int timeout_ms) {
  struct request request = {.path = path, .address = address, .type = type, .port = port, .timeout_ms = timeout_ms};
  return run_inside(connect_inside, &request);
}

static void *disable_offloads(void *context) {
  struct request *request = context;
  if ((request->result = enter(request->path)) < 0) return NULL;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  const uint32_t commands[] = {ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO, ETHTOOL_SSG, ETHTOOL_STXCSUM};
  for (unsigned i = 0; i < sizeof commands / sizeof *commands && request->result == 0; i++) {
    struct ethtool_value value = {.cmd = commands[i]};
    struct ifreq interface = {.ifr_data = (void *)&value};
    strncpy(interface.ifr_name, request->address, sizeof interface.ifr_name - 1);
    if (ioctl(fd, SIOCETHTOOL, &interface) < 0) request->result = -errno;
  }
  close(fd);
  return NULL;
}

int harness_disable_offloads(const char *path, const char *interface) {
  struct request request = {.path = path, .address = interface};
  return run_inside(disable_offloads, &request);
}

int harness_send_all(int fd, const void *bytes, int count) {
  for (int done = 0; done < count;) {
    ssize_t sent = send(fd, (const char *)bytes + done, count - done, MSG_NOSIGNAL);
    if (sent < 0 && errno != EINTR) return -errno;
    if (sent > 0) done += (int)sent;
  }
  return count;
}

int harness_receive(int fd, void *bytes, int count, int timeout_ms) {
  int done = 0;
  while (done < count) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    int ready = poll(&entry, 1, timeout_ms);
    if (ready == 0) break;
    ssize_t got = recv(fd, (char *)bytes + done, count - done, 0);
    if (got < 0 && errno != EINTR) return -errno;
    if (got == 0) break;
    if (got > 0) done += (int)got;
  }
  return done;
}

int harness_make_machine(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (kvm < 0) return -errno;
  int machine = ioctl(kvm, KVM_CREATE_VM, 0);
  int result = machine < 0 ? -errno : machine;
  close(kvm);
  return result;
}

void harness_swap_memory(int machine) {
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return;
  struct kvm_userspace_memory_region slot = {.memory_size = 4096, .userspace_addr = (uintptr_t)page};
  ioctl(machine, KVM_SET_USER_MEMORY_REGION, &slot);
  slot.memory_size = 0;
  ioctl(machine, KVM_SET_USER_MEMORY_REGION, &slot);
  munmap(page, 4096);
}
