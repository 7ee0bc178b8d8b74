// Waits until a network interface has a carrier (a VMM has opened the tap), then asks a Redis server behind it PING on a
// new connection, and prints the CLOCK_MONOTONIC time of the answer. One connection at a time: abandoned attempts would be
// work for the guest that is being measured.
//
// usage: tcp_ping INTERFACE ADDRESS PORT
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
  if (argc != 4) errx(64, "usage: tcp_ping INTERFACE ADDRESS PORT");
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
  if (inet_pton(AF_INET, argv[2], &to.sin_addr) != 1) errx(64, "%s is no address", argv[2]);
  struct ifreq interface = {0};
  strncpy(interface.ifr_name, argv[1], sizeof interface.ifr_name - 1);
  int probe = socket(AF_INET, SOCK_DGRAM, 0);
  if (probe < 0) err(1, "socket");
  double end = now() + 20;
  do {
    if (ioctl(probe, SIOCGIFFLAGS, &interface) < 0) err(1, "%s", argv[1]);
    usleep(200);
  } while (!(interface.ifr_flags & IFF_RUNNING) && now() < end);
  while (now() < end) {
    int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (s < 0) err(1, "socket");
    struct pollfd entry = {.fd = s, .events = POLLOUT};
    char reply[7];
    if ((connect(s, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS) && poll(&entry, 1, 500) == 1 &&
        write(s, "PING\r\n", 6) == 6) {
      entry.events = POLLIN;
      if (poll(&entry, 1, 2000) == 1 && read(s, reply, 7) == 7) {
        printf("%.6f\n", now());
        return 0;
      }
    }
    close(s);
  }
  errx(1, "no answer from %s", argv[2]);
}
