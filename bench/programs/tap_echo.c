// The floor of an echo over a tap: reads frames, swaps their Ethernet and IP addresses and UDP ports, writes them back. One
// process without a guest, so what is left is the client, the host's network stack and the tap.
//
// usage: tap_echo TAP
#include <err.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void swap(uint8_t *a, uint8_t *b, size_t count) {
  uint8_t saved[6];
  memcpy(saved, a, count);
  memcpy(a, b, count);
  memcpy(b, saved, count);
}

int main(int argc, char **argv) {
  if (argc != 2) errx(64, "usage: tap_echo TAP");
  struct ifreq interface = {.ifr_flags = IFF_TAP | IFF_NO_PI};
  strncpy(interface.ifr_name, argv[1], sizeof interface.ifr_name - 1);
  int tap = open("/dev/net/tun", O_RDWR);
  if (tap < 0 || ioctl(tap, TUNSETIFF, &interface) < 0) err(1, "%s", argv[1]);
  // Whoever had the tap before may have left it leaving checksums to its reader.
  if (ioctl(tap, TUNSETOFFLOAD, 0) < 0) err(1, "TUNSETOFFLOAD");
  puts("ready");
  fflush(stdout);
  uint8_t frame[65536];
  for (;;) {
    ssize_t count = read(tap, frame, sizeof frame);
    if (count < 0) err(1, "read");
    // IPv4 without options, UDP: a swap leaves both checksums right.
    if (count < 42 || frame[12] != 8 || frame[13] != 0 || frame[14] != 0x45 || frame[23] != 17) continue;
    swap(frame, frame + 6, 6);
    swap(frame + 26, frame + 30, 4);
    swap(frame + 34, frame + 36, 2);
    if (write(tap, frame, count) < 0) err(1, "write");
  }
}
