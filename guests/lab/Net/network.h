// What Swift needs of lwIP, with the macros it cannot import as functions.
#pragma once
#include "lwip/etharp.h"
#include "lwip/ethip6.h"
#include "lwip/init.h"
#include "lwip/ip4_frag.h"
#include "lwip/inet_chksum.h"
#include "lwip/netif.h"
#include "lwip/memp.h"
#include "lwip/pbuf.h"
#include "lwip/stats.h"
#include "lwip/tcp.h"
#include "lwip/timeouts.h"
#include "lwip/udp.h"
#include "netif/ethernet.h"

static inline void netif_set_checksums(struct netif *n, uint16_t flags) { NETIF_SET_CHECKSUM_CTRL(n, flags); }
static inline uint32_t tcp_send_space(const struct tcp_pcb *p) { return tcp_sndbuf(p); }
static inline uint32_t tcp_send_queue_length(const struct tcp_pcb *p) { return tcp_sndqueuelen(p); }
static inline void tcp_no_delay(struct tcp_pcb *p) { tcp_nagle_disable(p); }
static inline void tcp_keep_alive(struct tcp_pcb *p) { ip_set_option(p, SOF_KEEPALIVE); }
static inline ip_addr_t ip_addr_v4(uint32_t address) {
  ip_addr_t whole = IPADDR4_INIT(address);
  return whole;
}
static inline void pcb_reuse_address(struct tcp_pcb *p) { ip_set_option(p, SOF_REUSEADDR); }
/// The sequence number of what is given to TCP next.
static inline uint32_t tcp_next_sequence(const struct tcp_pcb *p) { return p->snd_lbb; }
/// Who speaks: the IP version to `version`; own port and the other's (2 bytes each) and addresses (16 bytes each, as two
/// numbers, the high half first) to `names`.
static inline void tcp_conversation(const struct tcp_pcb *p, void *version, void *names) {
  struct { uint16_t ports[2]; uint32_t address[4][2]; } __attribute__((packed)) found = {{p->local_port, p->remote_port}, {{0}}};
  const ip_addr_t *ends[] = {&p->local_ip, &p->remote_ip};
  *(uint8_t *)version = IP_IS_V6(&p->local_ip) ? 6 : 4;
  for (int end = 0; end < 2; end++) {
    uint32_t *words = found.address[end * 2];
    if (IP_IS_V6(ends[end])) {
      // Most significant word first; each half has its low word first.
      for (int word = 0; word < 4; word++) words[word ^ 1] = lwip_ntohl(ip_2_ip6(ends[end])->addr[word]);
    } else {
      words[2] = lwip_ntohl(ip_2_ip4(ends[end])->addr);
    }
  }
  memcpy(names, &found, sizeof found);
}
static inline uint16_t netif_checksums_all(void) { return NETIF_CHECKSUM_ENABLE_ALL; }
static inline uint16_t netif_checksums_generate_ip_only(void) {
  return NETIF_CHECKSUM_GEN_IP | NETIF_CHECKSUM_GEN_ICMP | NETIF_CHECKSUM_GEN_ICMP6 | NETIF_CHECKSUM_CHECK_IP |
         NETIF_CHECKSUM_CHECK_UDP | NETIF_CHECKSUM_CHECK_TCP | NETIF_CHECKSUM_CHECK_ICMP | NETIF_CHECKSUM_CHECK_ICMP6;
}
/// UDP only: a datagram that leaves in fragments has its checksum from us, no device can fill it in.
static inline uint16_t netif_checksums_generate_datagram(void) { return NETIF_CHECKSUM_GEN_UDP; }
static inline uint16_t netif_checksums_check_transport(void) { return NETIF_CHECKSUM_CHECK_UDP | NETIF_CHECKSUM_CHECK_TCP; }
static inline void set_lwip_heap(uint8_t *memory) { lwip_heap = memory; }
static inline size_t lwip_percent_free(size_t used, size_t all) { return used < all ? (all - used) * 100 / all : 0; }
/// Of heap, TCP segments and pbuf headers: how much is left of what is scarcest, in percent.
static inline size_t lwip_memory_free(void) {
  size_t heap = lwip_percent_free(lwip_stats.mem.used, MEM_SIZE);
  size_t segments = lwip_percent_free(memp_pools[MEMP_TCP_SEG]->stats->used, MEMP_NUM_TCP_SEG);
  size_t headers = lwip_percent_free(memp_pools[MEMP_PBUF]->stats->used, MEMP_NUM_PBUF);
  size_t least = heap < segments ? heap : segments;
  return least < headers ? least : headers;
}
static inline size_t lwip_heap_size(void) { return LAB_HEAP_SIZE; }
