// UDP echo client: keeps WINDOW datagrams in flight for SECONDS and prints replies a second and round-trip times.
//
// usage: udp_echo ADDRESS BYTES WINDOW SECONDS
#include <arpa/inet.h>
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { sample_limit = 1 << 20 };

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 5) errx(64, "usage: udp_echo ADDRESS BYTES WINDOW SECONDS");
  int bytes = atoi(argv[2]), window = atoi(argv[3]);
  double seconds = atof(argv[4]);
  char buffer[65536] = {0};
  if (bytes < 16 || bytes > (int)sizeof buffer || window < 1) errx(64, "16 bytes at least, window 1 at least");
  int s = socket(AF_INET, SOCK_DGRAM, 0);
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(7)};
  if (inet_pton(AF_INET, argv[1], &to.sin_addr) != 1) errx(64, "%s is no address", argv[1]);
  if (s < 0 || connect(s, (struct sockaddr *)&to, sizeof to) < 0) err(1, "connect");
  struct timeval patience = {.tv_usec = 200000};
  setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);

  int64_t *samples = malloc(sample_limit * sizeof *samples);
  if (!samples) err(1, "malloc");
  int64_t start = now(), end = start + (int64_t)(seconds * 1e9), at = start;
  long replies = 0, lost = 0;
  int in_flight = 0;
  while (at < end) {
    for (; in_flight < window; in_flight++) {
      memcpy(buffer, &at, 8);  // when it was sent comes back with it
      if (send(s, buffer, bytes, 0) != bytes) break;
      at = now();
    }
    ssize_t got = recv(s, buffer, sizeof buffer, 0);
    at = now();
    if (got != bytes) {  // nothing for 200 ms: what was under way is lost
      lost += in_flight;
      in_flight = 0;
      continue;
    }
    int64_t sent;
    memcpy(&sent, buffer, 8);
    samples[replies % sample_limit] = at - sent;
    replies++;
    if (in_flight > 0) in_flight--;
  }
  long count = replies < sample_limit ? replies : sample_limit;
  if (!count) errx(1, "no reply from %s", argv[1]);
  qsort(samples, count, sizeof *samples, ascending);
  printf("frames_per_s=%.0f p50_us=%.1f p99_us=%.1f lost=%ld\n", replies / ((at - start) / 1e9),
         samples[count / 2] / 1e3, samples[count * 99 / 100] / 1e3, lost);
}
