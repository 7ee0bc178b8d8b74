// A client of Redis, or on port 11211 of memcached, that keeps many connections busy with GET and SET, at saturation or at a fixed
// rate.
//
// usage: kv_load ADDRESS PORT CONNECTIONS PIPELINE READ-PERCENT SECONDS RATE
// RATE is requests a second, spread evenly; 0 sends as fast as replies come. At a fixed rate latency counts from when a
// request was due, so that a server that stalls is not spared, and what is due but not answered at the end counts as if it
// were answered then. All keys are set before it begins. Prints one JSON object; latencies in microseconds, p99 also of GET and
// SET by themselves.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { most = 512, deepest = 64, keys = 1000, value_size = 64, buckets = 64 << 10 };

struct connection {
  int socket;
  int waiting;              // replies to come
  double due[deepest];      // of each, oldest first
  char kind[deepest];       // of each: reads or writes
  char input[deepest * 128];
  size_t filled;
};

static struct connection connections[most];
enum { writes, reads, kinds };
// Microseconds, log-linear: 1024 steps an octave is more than enough.
static uint64_t histogram[kinds][buckets], samples[kinds], replies;
static double began, ends;
static int is_memcached;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static unsigned bucket(double microseconds) {
  uint64_t value = microseconds < 1 ? 1 : (uint64_t)(microseconds * 16);
  unsigned octave = 63 - (unsigned)__builtin_clzll(value);
  unsigned index = octave * 1024 + (unsigned)(octave < 10 ? value << (10 - octave) : value >> (octave - 10)) % 1024;
  return index < buckets ? index : buckets - 1;
}

// Of one kind, or of all.
static double quantile(double share, int from, int to) {
  uint64_t total = 0, seen = 0;
  for (int kind = from; kind < to; kind++) total += samples[kind];
  uint64_t wanted = (uint64_t)(share * (double)total);
  for (unsigned index = 0; index < buckets; index++) {
    for (int kind = from; kind < to; kind++) seen += histogram[kind][index];
    if (seen > wanted) return (double)(1ull << (index / 1024)) * (1 + (index % 1024) / 1024.0) / 16;
  }
  return 0;
}

static void note(double seconds, int kind) {
  histogram[kind][bucket(seconds * 1e6)]++;
  samples[kind]++;
}

static int put_get(char *out, size_t size, int key) {
  return snprintf(out, size, is_memcached ? "get key:%d\r\n" : "GET key:%d\r\n", key);
}

static int put_set(char *out, size_t size, int key) {
  static char value[value_size + 1];
  if (!value[0]) memset(value, 'v', value_size);
  if (is_memcached) return snprintf(out, size, "set key:%d 0 0 %d\r\n%s\r\n", key, value_size, value);
  return snprintf(out, size, "SET key:%d %s\r\n", key, value);
}

// Reads find their keys from the first one on, in a mode that is slow to set them as well.
static void set_all_keys(int fd) {
  const char *done = is_memcached ? "STORED\r\n" : "+OK\r\n";
  const int length = (int)strlen(done);
  char out[deepest * 160], in[deepest * 8];
  for (int key = 0; key < keys;) {
    int size = 0, wanted = 0;
    for (int index = 0; index < deepest && key < keys; index++, key++, wanted += length)
      size += put_set(out + size, sizeof out - (size_t)size, key);
    if (write(fd, out, (size_t)size) != size) err(1, "write");
    if (recv(fd, in, (size_t)wanted, MSG_WAITALL) != wanted || memcmp(in, done, (size_t)length)) errx(1, "the keys could not be set");
  }
}

static void ask(struct connection *connection, int count, int read_percent, double due, double step) {
  char out[deepest * 160];
  int size = 0;
  for (int index = 0; index < count; index++) {
    int key = rand() % keys, kind = rand() % 100 < read_percent ? reads : writes;
    connection->kind[connection->waiting] = (char)kind;
    size += kind == reads ? put_get(out + size, sizeof out - (size_t)size, key) : put_set(out + size, sizeof out - (size_t)size, key);
    connection->due[connection->waiting++] = due + index * step;
  }
  if (write(connection->socket, out, (size_t)size) != size) err(1, "write");
}

// Takes whole replies out of the input: +OK, $64 … and $-1; of memcached STORED, VALUE … END and END.
static void take(struct connection *connection, double time) {
  size_t at = 0;
  while (at < connection->filled) {
    char *line = connection->input + at, *end = memchr(line, '\n', connection->filled - at);
    if (!end) break;
    size_t size = (size_t)(end - line) + 1;
    if (line[0] == '-' || !strncmp(line, "SERVER_ERROR", 12) || !strncmp(line, "ERROR", 5)) errx(1, "the server said %.*s", (int)size, line);
    if (line[0] == '$' && line[1] != '-') size += (size_t)atoi(line + 1) + 2;
    if (line[0] == 'V') size += value_size + strlen("\r\nEND\r\n");
    if (at + size > connection->filled) break;
    at += size;
    double latency = time - connection->due[0];
    int kind = connection->kind[0];
    memmove(connection->due, connection->due + 1, (size_t)--connection->waiting * sizeof(double));
    memmove(connection->kind, connection->kind + 1, (size_t)connection->waiting);
    if (time < began) continue;
    note(latency, kind);
    replies++;
  }
  memmove(connection->input, connection->input + at, connection->filled -= at);
}

int main(int argc, char **argv) {
  if (argc != 8) errx(64, "usage: kv_load ADDRESS PORT CONNECTIONS PIPELINE READ-PERCENT SECONDS RATE");
  int count = atoi(argv[3]), depth = atoi(argv[4]), read_percent = atoi(argv[5]), one = 1;
  double seconds = atof(argv[6]), rate = atof(argv[7]);
  if (count < 1 || count > most || depth < 1 || depth > deepest) errx(64, "1 to %d connections, pipelines to %d", most, deepest);
  is_memcached = atoi(argv[2]) == 11211;
  int poll = epoll_create1(0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
  inet_pton(AF_INET, argv[1], &address.sin_addr);
  for (int index = 0; index < count; index++) {
    int fd = connections[index].socket = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) err(1, "connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
    epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
  }
  set_all_keys(connections[0].socket);
  // A fifth more in front, to warm up.
  double start = now(), next = start, step = rate > 0 ? 1 / rate : 0;
  began = start + seconds / 5;
  ends = began + seconds;
  if (rate == 0)
    for (int index = 0; index < count; index++) ask(&connections[index], depth, read_percent, start, 0);
  int turn = 0;
  while (1) {
    double time = now();
    if (time > ends) break;
    // Whoever is idle takes what is due; what nobody can take goes on waiting, and its time counts.
    for (int tried = 0; rate > 0 && next <= time && tried < count; tried++) {
      struct connection *connection = &connections[turn = (turn + 1) % count];
      if (connection->waiting) continue;
      int due = (int)((time - next) / step) + 1;
      int size = due < depth ? due : depth;
      ask(connection, size, read_percent, next, step);
      next += size * step;
    }
    // Asleep until the next is due, or a reply comes if all connections are busy: this core has others to run.
    double left = rate > 0 && next > time ? next - time : 0.01;
    struct timespec patience = {.tv_nsec = (long)(left * 1e9)};
    if (left >= 1) patience = (struct timespec){.tv_sec = 1};
    struct epoll_event events[most];
    int ready = epoll_pwait2(poll, events, most, &patience, NULL);
    if (ready < 0 && errno != EINTR) err(1, "epoll_wait");
    for (int index = 0; index < ready; index++) {
      struct connection *connection = &connections[events[index].data.u32];
      ssize_t got = read(connection->socket, connection->input + connection->filled,
                         sizeof connection->input - connection->filled);
      if (got <= 0) errx(1, "the server closed a connection");
      connection->filled += (size_t)got;
      time = now();
      take(connection, time);
      if (rate == 0 && !connection->waiting) ask(connection, depth, read_percent, time, 0);
    }
  }
  double time = now();
  for (int index = 0; rate > 0 && index < count; index++)
    for (int reply = 0; reply < connections[index].waiting; reply++)
      note(time - connections[index].due[reply], connections[index].kind[reply]);
  for (; rate > 0 && next < ends; next += step) note(time - next, rand() % 100 < read_percent ? reads : writes);
  printf("{\"per_second\": %.1f, \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"read_p99\": %.1f, \"write_p99\": %.1f, "
         "\"replies\": %llu}\n",
         (double)replies / (time - began), quantile(.5, 0, kinds), quantile(.99, 0, kinds), quantile(.999, 0, kinds),
         quantile(.99, reads, kinds), quantile(.99, writes, reads), (unsigned long long)replies);
}
