#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/filter.h>
#include <linux/sockios.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define RESULT(expression)                  \
  do {                                      \
    __auto_type result_ = (expression);     \
    return result_ < 0 ? -errno : result_;  \
  } while (0)

static const int tap_header_size = 12;

// Whether `name` exists; of a tun or tap also which of the two, in *kind.
static int look_up(const char *name, int *kind) {
  struct ifreq lookup = {0};
  struct ethtool_drvinfo information = {.cmd = ETHTOOL_GDRVINFO};
  if (strlen(name) >= sizeof lookup.ifr_name) return 0;
  strcpy(lookup.ifr_name, name);
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return 0;
  int known = ioctl(fd, SIOCGIFINDEX, &lookup) == 0;
  lookup.ifr_data = (void *)&information;
  *kind = 0;
  if (known && ioctl(fd, SIOCETHTOOL, &lookup) == 0 && strcmp(information.driver, "tun") == 0)
    *kind = strcmp(information.bus_info, "tap") == 0 ? LX_KIND_TAP : LX_KIND_TUN;
  close(fd);
  return known;
}

int lx_tap_open(const char *name, int *step, int *kind) {
  *step = 0;
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return -errno;
  fd = lx_closed_first(fd);
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  *step = 1;
  // TUNSETIFF would make an interface that does not exist; a typing mistake must not leave one behind.
  if (!look_up(name, kind)) {
    close(fd);
    return -ENODEV;
  }
  strcpy(request.ifr_name, name);
  if (ioctl(fd, TUNSETIFF, &request) < 0) goto failed;
  *step = 2;
  if (ioctl(fd, TUNSETVNETHDRSZ, &tap_header_size) < 0) goto failed;
  return fd;
failed:;
  int error = errno;
  close(fd);
  return -error;
}

int lx_tap_adopt(int fd, int *step) {
  struct ifreq request = {0};
  *step = 0;
  // TUNGETIFF says IFF_NO_PI of each tap without a filter: IFF_NOFILTER is the same bit. A macvtap has no filters, and no such bit.
  struct sock_filter all = {.code = BPF_RET | BPF_K, .k = ~0u};
  struct sock_fprog filter = {.len = 1, .filter = &all};
  int filtered = ioctl(fd, TUNATTACHFILTER, &filter) == 0;
  int result = ioctl(fd, TUNGETIFF, &request);
  if (filtered) ioctl(fd, TUNDETACHFILTER, &filter);
  if (result < 0) return -EBADF;
  if (!(request.ifr_flags & IFF_TAP) || !(request.ifr_flags & IFF_NO_PI) || !(request.ifr_flags & IFF_VNET_HDR)) return -EINVAL;
  *step = 1;
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0) return -errno;
  *step = 2;
  if (ioctl(fd, TUNSETVNETHDRSZ, &tap_header_size) < 0) return -errno;
  return lx_closed_first(fd);
}

int lx_tap_name(int fd, char name[IFNAMSIZ]) {
  struct ifreq request = {0};
  if (ioctl(fd, TUNGETIFF, &request) < 0) return -errno;
  memcpy(name, request.ifr_name, IFNAMSIZ);
  name[IFNAMSIZ - 1] = 0;
  return 0;
}

int lx_tap_set_offload(int fd, unsigned flags) {
  unsigned long value = 0;
  if (flags & LX_TAP_CSUM) value |= TUN_F_CSUM;
  if (flags & LX_TAP_TSO4) value |= TUN_F_TSO4;
  if (flags & LX_TAP_TSO6) value |= TUN_F_TSO6;
  RESULT(ioctl(fd, TUNSETOFFLOAD, value));
}

int lx_unix_socket(int type) { RESULT(socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)); }

static int unix_address(const char *path, struct sockaddr_un *address) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  // An empty path would be an abstract address, which has no permissions.
  if (!*path) return -ENOENT;
  if (strlen(path) >= sizeof address->sun_path) return -ENAMETOOLONG;
  strcpy(address->sun_path, path);
  return 0;
}
int lx_unix_connect(int fd, const char *path) {
  struct sockaddr_un address;
  int error = unix_address(path, &address);
  if (error) return error;
  RESULT(connect(fd, (struct sockaddr *)&address, sizeof address));
}
int lx_unix_listen(int fd, const char *path, int backlog) {
  struct sockaddr_un address;
  int error = unix_address(path, &address);
  if (error) return error;
  mode_t mask = umask(0077);
  int result = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
  umask(mask);
  if (result) return result;
  RESULT(listen(fd, backlog));
}
int lx_unix_identity(const char *path, uint64_t identity[2]) {
  struct stat status;
  if (lstat(path, &status) < 0) return -errno;
  identity[0] = status.st_dev;
  identity[1] = status.st_ino;
  return S_ISSOCK(status.st_mode);
}
int lx_lock_folder(const char *path) {
  char folder[sizeof ((struct sockaddr_un *)0)->sun_path];
  const char *slash = strrchr(path, '/');
  size_t length = slash ? (size_t)(slash - path) + 1 : 1;
  if (length >= sizeof folder) return -ENAMETOOLONG;
  memcpy(folder, slash ? path : ".", length);
  folder[length] = 0;
  int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return -errno;
  for (int attempt = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; attempt++) {
    if (attempt == 100) break;
    usleep(10000);
  }
  return fd;
}
int lx_accept(int fd) { RESULT(accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)); }

ssize_t lx_receive_fd(int fd, void *buffer, size_t count, int *received_fd) {
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(16 * sizeof(int))];
  } control;
  struct iovec vector = {buffer, count};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  *received_fd = -1;
  ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  if (got < 0) return -errno;
  // Of more than fit the kernel has closed the rest.
  for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + CMSG_LEN(sizeof(int)) <= header->cmsg_len; at += sizeof(int)) {
      int received;
      memcpy(&received, CMSG_DATA(header) + at, sizeof received);
      if (*received_fd < 0) *received_fd = received;
      else close(received);
    }
  }
  return got;
}
ssize_t lx_send_fd(int fd, const void *buffer, size_t count, int sent_fd) {
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {0};
  struct iovec vector = {(void *)buffer, count};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &sent_fd, sizeof(int));
  RESULT(sendmsg(fd, &message, MSG_NOSIGNAL));
}
ssize_t lx_send(int fd, const void *buffer, size_t count) { RESULT(send(fd, buffer, count, MSG_NOSIGNAL | MSG_DONTWAIT)); }
ssize_t lx_sendv(int fd, const struct iovec *vector, int count) {
  struct msghdr message = {.msg_iov = (struct iovec *)vector, .msg_iovlen = (size_t)count};
  RESULT(sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}
ssize_t lx_recv(int fd, void *buffer, size_t count) { RESULT(recv(fd, buffer, count, MSG_DONTWAIT)); }
ssize_t lx_recvv(int fd, const struct iovec *vector, int count) {
  struct msghdr message = {.msg_iov = (struct iovec *)vector, .msg_iovlen = (size_t)count};
  RESULT(recvmsg(fd, &message, MSG_DONTWAIT));
}
