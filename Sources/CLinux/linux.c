#include "CLinux.h"

#include <sys/socket.h>
#include <netinet/tcp.h>
#include <netinet/in.h>
#include <netdb.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <pthread.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#define RESULT(expression)                  \
  do {                                      \
    __auto_type result_ = (expression);     \
    return result_ < 0 ? -errno : result_;  \
  } while (0)

int lx_open(const char *path, int flags, int mode) { RESULT(open(path, flags | O_CLOEXEC, mode)); }
int lx_close(int fd) { RESULT(close(fd)); }
ssize_t lx_read(int fd, void *buffer, size_t count) { RESULT(read(fd, buffer, count)); }
ssize_t lx_write(int fd, const void *buffer, size_t count) { RESULT(write(fd, buffer, count)); }
ssize_t lx_pread(int fd, void *buffer, size_t count, int64_t offset) { RESULT(pread(fd, buffer, count, offset)); }
ssize_t lx_pwrite(int fd, const void *buffer, size_t count, int64_t offset) { RESULT(pwrite(fd, buffer, count, offset)); }
ssize_t lx_readv(int fd, const struct iovec *vector, int count) { RESULT(readv(fd, vector, count)); }
ssize_t lx_writev(int fd, const struct iovec *vector, int count) { RESULT(writev(fd, vector, count)); }
ssize_t lx_preadv(int fd, const struct iovec *vector, int count, int64_t offset, int flags) {
  RESULT(preadv2(fd, vector, count, offset, flags));
}
ssize_t lx_pwritev(int fd, const struct iovec *vector, int count, int64_t offset, int flags) {
  RESULT(pwritev2(fd, vector, count, offset, flags));
}
int lx_fdatasync(int fd) { RESULT(fdatasync(fd)); }
int lx_fsync(int fd) { RESULT(fsync(fd)); }
int lx_fallocate(int fd, int mode, int64_t offset, int64_t length) { RESULT(fallocate(fd, mode, offset, length)); }
int lx_ftruncate(int fd, int64_t length) { RESULT(ftruncate(fd, length)); }
int64_t lx_lseek(int fd, int64_t offset, int whence) { RESULT(lseek(fd, offset, whence)); }
int lx_fstat(int fd, struct stat *out) { RESULT(fstat(fd, out)); }

int64_t lx_file_size(int fd) {
  struct stat status;
  if (fstat(fd, &status) < 0) return -errno;
  if (S_ISREG(status.st_mode)) return status.st_size;
  uint64_t size;
  if (!S_ISBLK(status.st_mode)) return -EINVAL;
  if (ioctl(fd, BLKGETSIZE64, &size) < 0) return -errno;
  return (int64_t)size;
}

int lx_lock_file(int fd, int exclusive) {
  struct flock lock = {.l_type = exclusive ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};
  RESULT(fcntl(fd, F_OFD_SETLK, &lock));
}

int lx_set_nonblocking(int fd, int on) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  RESULT(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

int lx_unlink(const char *path) { RESULT(unlink(path)); }
int lx_rename(const char *from, const char *to) { RESULT(rename(from, to)); }

int lx_memfd(const char *name, uint64_t size) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -errno;
  if (ftruncate(fd, (off_t)size) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return fd;
}

int lx_memfd_plain(const char *name) { RESULT(memfd_create(name, MFD_CLOEXEC)); }

void *lx_mmap(size_t length, int protection, int flags, int fd, int64_t offset, int *error) {
  void *address = mmap(NULL, length, protection, flags, fd, offset);
  if (address != MAP_FAILED) return address;
  *error = errno;
  return NULL;
}
int lx_munmap(void *address, size_t length) { RESULT(munmap(address, length)); }
int lx_madvise(void *address, size_t length, int advice) { RESULT(madvise(address, length, advice)); }

int lx_eventfd(unsigned initial) { RESULT(eventfd(initial, EFD_CLOEXEC | EFD_NONBLOCK)); }
void lx_eventfd_signal(int fd) {
  uint64_t one = 1;
  while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
  }
}
uint64_t lx_eventfd_take(int fd) {
  uint64_t value;
  ssize_t count;
  while ((count = read(fd, &value, sizeof value)) < 0 && errno == EINTR) {
  }
  return count == sizeof value ? value : 0;
}
int lx_epoll_create(void) { RESULT(epoll_create1(EPOLL_CLOEXEC)); }
int lx_epoll_ctl(int epoll, int operation, int fd, uint32_t events, uint64_t token) {
  struct epoll_event event = {.events = events, .data.u64 = token};
  RESULT(epoll_ctl(epoll, operation, fd, &event));
}
int lx_epoll_wait(int epoll, struct epoll_event *events, int capacity, int timeout_ms) {
  RESULT(epoll_wait(epoll, events, capacity, timeout_ms));
}
int lx_timerfd(void) { RESULT(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)); }
int lx_timerfd_arm(int fd, uint64_t nanoseconds) {
  struct itimerspec spec = {.it_value = {.tv_sec = (time_t)(nanoseconds / 1000000000), .tv_nsec = (long)(nanoseconds % 1000000000)}};
  RESULT(timerfd_settime(fd, 0, &spec, NULL));
}
static uint64_t clock_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}
uint64_t lx_monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
// Counts on while the host is suspended.
uint64_t lx_boottime_ns(void) { return clock_ns(CLOCK_BOOTTIME); }
uint64_t lx_realtime_ns(void) { return clock_ns(CLOCK_REALTIME); }
int lx_getrandom(void *buffer, size_t count) {
  for (size_t done = 0; done < count;) {
    ssize_t got = getrandom((char *)buffer + done, count - done, 0);
    if (got < 0 && errno != EINTR) return -errno;
    if (got > 0) done += (size_t)got;
  }
  return 0;
}

const char *lx_strerror(int error) {
  const char *text = strerrordesc_np(error);
  return text ? text : "unknown error";
}
void lx_flush_and_exit(int code) { exit(code); }
void lx_exit_now(int code) {
  lx_terminal_restore();
  _exit(code);
}

// Table-driven CRC-32C for CPUs without SSE4.2, made at first use; the same value whoever makes it.
static uint32_t crc_soft(uint32_t crc, const uint8_t *bytes, size_t count) {
  static uint32_t table[256];
  if (!table[1]) {
    for (uint32_t i = 256; i-- > 0;) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; bit++) value = value & 1 ? value >> 1 ^ 0x82f63b78 : value >> 1;
      table[i] = value;
    }
  }
  while (count--) crc = crc >> 8 ^ table[(crc ^ *bytes++) & 0xff];
  return crc;
}

#ifdef __x86_64__
__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *bytes, size_t count) {
  uint64_t wide = crc;
  for (; count >= 8; bytes += 8, count -= 8) {
    uint64_t word;
    memcpy(&word, bytes, 8);
    wide = __builtin_ia32_crc32di(wide, word);
  }
  crc = (uint32_t)wide;
  while (count--) crc = __builtin_ia32_crc32qi(crc, *bytes++);
  return crc;
}
#endif

uint32_t lx_crc32c(uint32_t crc, const void *buffer, size_t count) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("sse4.2")) return ~crc_sse42(~crc, buffer, count);
#endif
  return ~crc_soft(~crc, buffer, count);
}

int lx_is_zero(const void *buffer, size_t count) {
  const uint64_t *words = buffer;
  for (size_t index = 0; index < count / 8; index += 8) {
    const uint64_t *line = words + index;
    if (line[0] | line[1] | line[2] | line[3] | line[4] | line[5] | line[6] | line[7]) return 0;
  }
  return 1;
}

// host:port, IPv6 addresses in brackets; an empty host is any address.
static int split_address(const char *text, char *host, size_t size, const char **port) {
  const char *colon = strrchr(text, ':');
  if (!colon || colon[1] == 0) return -EINVAL;
  size_t length = (size_t)(colon - text);
  if (length >= 2 && text[0] == '[' && text[length - 1] == ']') { text++; length -= 2; }
  if (length >= size) return -EINVAL;
  memcpy(host, text, length);
  host[length] = 0;
  *port = colon + 1;
  return 0;
}

// No delay, and little in the kernel's queue that has not left yet: what is urgent must not wait behind it.
static void tcp_prompt(int fd) {
  int one = 1, unsent = 256 << 10;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

int lx_closed_first(int fd) {
  int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 512);
  if (high < 0) return fd;
  close(fd);
  return high;
}

static int open_socket(const char *address, int type, int listens) {
  char host[256];
  const char *port;
  int result = split_address(address, host, sizeof host, &port);
  if (result < 0) return result;
  struct addrinfo hints = {.ai_socktype = type, .ai_flags = AI_NUMERICSERV | (listens ? AI_PASSIVE : 0)}, *found;
  // No host is any address of both families: one socket of IPv6 has those of IPv4 as well.
  int is_any = listens && !host[0];
  if (is_any) hints.ai_family = AF_INET6;
  if (getaddrinfo(host[0] ? host : NULL, port, &hints, &found) != 0) return -EADDRNOTAVAIL;
  result = -EADDRNOTAVAIL;
  for (struct addrinfo *each = found; each; each = each->ai_next) {
    int mode = SOCK_CLOEXEC | (type == SOCK_DGRAM ? SOCK_NONBLOCK : 0), one = 1, zero = 0;
    int fd = socket(each->ai_family, each->ai_socktype | mode, each->ai_protocol);
    if (fd < 0) { result = -errno; continue; }
    if (type == SOCK_STREAM) tcp_prompt(fd);
    if (listens && type == SOCK_STREAM) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (is_any) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    // Ends a connect() that nobody answers with EINPROGRESS: the kernel's own patience is two minutes.
    struct timeval limit = {.tv_sec = 1, .tv_usec = 500000};
    if (!listens) setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (listens ? bind(fd, each->ai_addr, each->ai_addrlen) == 0 && (type == SOCK_DGRAM || listen(fd, 64) == 0)
                : connect(fd, each->ai_addr, each->ai_addrlen) == 0) {
      result = lx_closed_first(fd);
      break;
    }
    result = errno == EINPROGRESS ? -ETIMEDOUT : -errno;
    close(fd);
  }
  freeaddrinfo(found);
  if (!is_any || result != -EAFNOSUPPORT) return result;
  // A host without IPv6.
  char four[64];
  return snprintf(four, sizeof four, "0.0.0.0:%s", port) < (int)sizeof four ? open_socket(four, type, 1) : -EINVAL;
}

int lx_tcp_connect(const char *address) { return open_socket(address, SOCK_STREAM, 0); }
int lx_tcp_listen(const char *address) { return open_socket(address, SOCK_STREAM, 1); }
int lx_udp_connect(const char *address) { return open_socket(address, SOCK_DGRAM, 0); }
int lx_udp_connect_beside(int tcp) {
  struct sockaddr_storage peer;
  socklen_t size = sizeof peer;
  if (getpeername(tcp, (struct sockaddr *)&peer, &size) < 0) return -errno;
  int fd = socket(peer.ss_family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -errno;
  if (connect(fd, (struct sockaddr *)&peer, size) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  return lx_closed_first(fd);
}
// Each datagram comes with the local address that it was sent to, and what ICMP says of ours is told.
int lx_udp_listen(const char *address) {
  int fd = open_socket(address, SOCK_DGRAM, 1), one = 1;
  if (fd < 0) return fd;
  setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
  setsockopt(fd, IPPROTO_IP, IP_RECVERR, &one, sizeof one);
  setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one);
  setsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &one, sizeof one);
  return fd;
}

static int is_same_peer(const struct sockaddr_storage *one, const struct sockaddr_storage *other) {
  if (one->ss_family != other->ss_family) return 0;
  if (one->ss_family == AF_INET) {
    const struct sockaddr_in *a = (const void *)one, *b = (const void *)other;
    return a->sin_port == b->sin_port && a->sin_addr.s_addr == b->sin_addr.s_addr;
  }
  const struct sockaddr_in6 *a = (const void *)one, *b = (const void *)other;
  return a->sin6_port == b->sin6_port && IN6_ARE_ADDR_EQUAL(&a->sin6_addr, &b->sin6_addr);
}

ssize_t lx_udp_receive(int fd, void *buffer, size_t count, struct lx_udp_peer *from, const struct lx_udp_peer *peer) {
  union {
    char bytes[256];
    struct cmsghdr align;
  } control;
  struct iovec piece = {buffer, count};
  struct msghdr message = {.msg_name = &from->address, .msg_namelen = sizeof from->address, .msg_iov = &piece,
                           .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
  if (got < 0) {
    int error = errno, is_peers = !peer;
    if (error == EAGAIN) return -error;
    // The same in its long form: the name is that of whom a datagram was for. Anybody can answer for others.
    for (int left = 1024; left > 0; left--) {
      message.msg_controllen = sizeof control;
      message.msg_namelen = sizeof from->address;
      if (recvmsg(fd, &message, MSG_DONTWAIT | MSG_ERRQUEUE) < 0) break;
      if (peer && is_same_peer(&from->address, &peer->address)) is_peers = 1;
    }
    return is_peers ? -error : -EPROTO;
  }
  from->size = message.msg_namelen;
  from->has_local = 0;
  for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each; each = CMSG_NXTHDR(&message, each)) {
    if (each->cmsg_level == IPPROTO_IP && each->cmsg_type == IP_PKTINFO && from->address.ss_family == AF_INET) {
      struct in_pktinfo info;
      memcpy(&info, CMSG_DATA(each), sizeof info);
      from->local4 = info.ipi_addr;
      from->has_local = 1;
    } else if (each->cmsg_level == IPPROTO_IPV6 && each->cmsg_type == IPV6_PKTINFO) {
      struct in6_pktinfo info;
      memcpy(&info, CMSG_DATA(each), sizeof info);
      from->local6 = info.ipi6_addr;
      // A link's own addresses are known on that link only.
      from->interface = IN6_IS_ADDR_LINKLOCAL(&info.ipi6_addr) ? info.ipi6_ifindex : 0;
      from->has_local = 1;
    }
  }
  return got;
}

ssize_t lx_udp_send(int fd, const void *buffer, size_t count, const struct lx_udp_peer *to) {
  union {
    char bytes[CMSG_SPACE(sizeof(struct in6_pktinfo))];
    struct cmsghdr align;
  } control = {{0}};
  struct iovec piece = {(void *)buffer, count};
  struct msghdr message = {.msg_name = (void *)&to->address, .msg_namelen = to->size, .msg_iov = &piece, .msg_iovlen = 1};
  if (to->has_local) {
    struct cmsghdr *header = &control.align;
    struct in_pktinfo four = {.ipi_spec_dst = to->local4};
    struct in6_pktinfo six = {.ipi6_addr = to->local6, .ipi6_ifindex = to->interface};
    int is4 = to->address.ss_family == AF_INET;
    header->cmsg_level = is4 ? IPPROTO_IP : IPPROTO_IPV6;
    header->cmsg_type = is4 ? IP_PKTINFO : IPV6_PKTINFO;
    size_t size = is4 ? sizeof four : sizeof six;
    header->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(header), is4 ? (void *)&four : (void *)&six, size);
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(size);
  }
  ssize_t sent = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
  return sent < 0 ? -errno : sent;
}

// The address is in the IP header and the port in UDP's, where the filter's data begin.
int lx_udp_only_from(int fd, const struct lx_udp_peer *peer) {
  int none = 0;
  if (!peer) return setsockopt(fd, SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof none) < 0 && errno != ENOENT ? -errno : 0;
  uint32_t words[4];
  int first = 12, count = 1, port;
  if (peer->address.ss_family == AF_INET) {
    const struct sockaddr_in *four = (const struct sockaddr_in *)&peer->address;
    words[0] = ntohl(four->sin_addr.s_addr);
    port = ntohs(four->sin_port);
  } else {
    const struct sockaddr_in6 *six = (const struct sockaddr_in6 *)&peer->address;
    memcpy(words, &six->sin6_addr, sizeof words);
    for (int index = 0; index < 4; index++) words[index] = ntohl(words[index]);
    if (IN6_IS_ADDR_V4MAPPED(&six->sin6_addr)) words[0] = words[3];
    else { first = 8; count = 4; }
    port = ntohs(six->sin6_port);
  }
  struct sock_filter code[12];
  unsigned length = 0, end = (unsigned)(2 * count + 3);
  for (int index = 0; index < count; index++) {
    code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_NET_OFF + first + 4 * index));
    code[length] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, words[index], 0, (uint8_t)(end - length - 1));
    length++;
  }
  code[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0);
  code[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)port, 0, 1);
  code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, UINT32_MAX);
  code[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
  struct sock_fprog program = {.len = (unsigned short)length, .filter = code};
  return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) < 0 ? -errno : 0;
}

int lx_tcp_accept(int fd) {
  int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
  if (accepted < 0) return -errno;
  tcp_prompt(accepted);
  return lx_closed_first(accepted);
}

int lx_local_port(int fd) {
  union {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
  } address;
  socklen_t size = sizeof address;
  if (getsockname(fd, &address.any, &size) < 0) return -errno;
  return ntohs(address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port);
}

int lx_set_file_mode(int fd, int mode) { return fchmod(fd, (mode_t)mode) < 0 ? -errno : 0; }

int lx_file_mode(int fd) {
  struct stat status;
  return fstat(fd, &status) < 0 ? -errno : (int)(status.st_mode & 07777);
}

int lx_file_is_own(int fd) {
  struct stat status;
  return fstat(fd, &status) == 0 && (status.st_uid == geteuid() || status.st_uid == 0);
}
