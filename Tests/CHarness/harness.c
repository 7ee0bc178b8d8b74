#define _GNU_SOURCE
#include "CHarness.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/icmp6.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

struct request {
  const char *path, *address;
  int type, timeout_ms, result;
  uint16_t port;
};

// On a thread of its own: a namespace belongs to a thread, and this one ends with it.
static void *connect_inside(void *context) {
  struct request *request = context;
  request->result = -1;
  int space = open(request->path, O_RDONLY | O_CLOEXEC);
  if (space < 0 || setns(space, CLONE_NEWNET) < 0) {
    request->result = -errno;
    return NULL;
  }
  close(space);
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
  pthread_t thread;
  if (pthread_create(&thread, NULL, connect_inside, &request)) return -EAGAIN;
  pthread_join(thread, NULL);
  return request.result;
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
