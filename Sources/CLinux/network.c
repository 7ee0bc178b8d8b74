#include "CLinux.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define RESULT(expression)                  \
  do {                                      \
    __auto_type result_ = (expression);     \
    return result_ < 0 ? -errno : result_;  \
  } while (0)

int lx_tap_open(const char *name, int *step) {
  *step = 0;
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return -errno;
  fd = lx_closed_first(fd);
  struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
  int header_size = 12;
  *step = 1;
  if (strlen(name) >= sizeof request.ifr_name) {
    close(fd);
    return -ENAMETOOLONG;
  }
  strcpy(request.ifr_name, name);
  // TUNSETIFF would make an interface that does not exist; a typing mistake must not leave one behind.
  int socket_fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  struct ifreq lookup = {0};
  strcpy(lookup.ifr_name, name);
  int known = socket_fd < 0 ? -1 : ioctl(socket_fd, SIOCGIFINDEX, &lookup);
  if (socket_fd >= 0) close(socket_fd);
  if (known < 0) {
    close(fd);
    return -ENODEV;
  }
  if (ioctl(fd, TUNSETIFF, &request) < 0) goto failed;
  *step = 2;
  if (ioctl(fd, TUNSETVNETHDRSZ, &header_size) < 0) goto failed;
  return fd;
failed:;
  int error = errno;
  close(fd);
  return -error;
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
int lx_accept(int fd) { RESULT(accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)); }

ssize_t lx_receive_fd(int fd, void *buffer, size_t count, int *received_fd) {
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec vector = {buffer, count};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  *received_fd = -1;
  ssize_t got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
  if (got < 0) return -errno;
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS && header->cmsg_len == CMSG_LEN(sizeof(int)))
    memcpy(received_fd, CMSG_DATA(header), sizeof(int));
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
