// Opens connections to a Redis server behind a tap and keeps them. Then, for each line on standard input, waits until the
// tap has a carrier (a VMM has opened it), asks PING on the next of the connections, and prints the CLOCK_MONOTONIC time of
// the answer. A guest restored from a snapshot that was taken meanwhile knows these connections.
//
// usage: redis_hold INTERFACE ADDRESS PORT CONNECTIONS
#include <arpa/inet.h>
#include <err.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 64 };

static void ping(int connection) {
  char reply[7];
  if (write(connection, "PING\r\n", 6) != 6) err(1, "write");
  ssize_t count = recv(connection, reply, sizeof reply, MSG_WAITALL);
  if (count < 0) err(1, "no answer within 20 s");
  if (count != 7 || memcmp(reply, "+PONG\r\n", 7)) errx(1, "not a PONG");
}

/// The carrier is known at once; that frames are sent again (IFF_RUNNING) follows, and goes late when the carrier goes.
static int is_up(int socket, struct ifreq *interface) {
  struct ethtool_value link = {.cmd = ETHTOOL_GLINK};
  struct ifreq question = *interface;
  question.ifr_data = (void *)&link;
  if (ioctl(socket, SIOCETHTOOL, &question) < 0) err(1, "%s", interface->ifr_name);
  if (ioctl(socket, SIOCGIFFLAGS, interface) < 0) err(1, "%s", interface->ifr_name);
  return link.data && interface->ifr_flags & IFF_RUNNING;
}

int main(int argc, char **argv) {
  int count = argc == 5 ? atoi(argv[4]) : 0;
  if (count < 1 || count > MOST) errx(64, "usage: redis_hold INTERFACE ADDRESS PORT CONNECTIONS (1 to %d)", MOST);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
  if (inet_pton(AF_INET, argv[2], &to.sin_addr) != 1) errx(64, "%s is no address", argv[2]);
  struct ifreq interface = {0};
  strncpy(interface.ifr_name, argv[1], sizeof interface.ifr_name - 1);
  int connections[MOST];
  for (int i = 0; i < count; i++) {
    struct timeval patience = {.tv_sec = 20};
    connections[i] = socket(AF_INET, SOCK_STREAM, 0);
    if (connections[i] < 0 || connect(connections[i], (struct sockaddr *)&to, sizeof to) < 0) err(1, "%s", argv[2]);
    setsockopt(connections[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    ping(connections[i]);
  }
  puts("ready");
  fflush(stdout);
  for (int i = 0; i < count && getchar() != EOF; i++) {
    do usleep(200);
    while (!is_up(connections[i], &interface));
    ping(connections[i]);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%.6f\n", now.tv_sec + now.tv_nsec / 1e9);
    fflush(stdout);
  }
  return 0;
}
