// What Swift needs of lwIP, with the macros it cannot import as functions.
#pragma once
#include "lwip/etharp.h"
#include "lwip/init.h"
#include "lwip/ip4_frag.h"
#include "lwip/inet_chksum.h"
#include "lwip/netif.h"
#include "lwip/pbuf.h"
#include "lwip/tcp.h"
#include "lwip/timeouts.h"
#include "lwip/udp.h"
#include "netif/ethernet.h"

static inline void netif_set_checksums(struct netif *n, uint16_t flags) { NETIF_SET_CHECKSUM_CTRL(n, flags); }
static inline uint32_t tcp_send_space(const struct tcp_pcb *p) { return tcp_sndbuf(p); }
static inline uint32_t tcp_send_queue_length(const struct tcp_pcb *p) { return tcp_sndqueuelen(p); }
static inline void tcp_no_delay(struct tcp_pcb *p) { tcp_nagle_disable(p); }
static inline void tcp_keep_alive(struct tcp_pcb *p) { ip_set_option(p, SOF_KEEPALIVE); }
static inline void pcb_reuse_address(struct tcp_pcb *p) { ip_set_option(p, SOF_REUSEADDR); }
static inline uint16_t netif_checksums_all(void) { return NETIF_CHECKSUM_ENABLE_ALL; }
static inline uint16_t netif_checksums_generate_ip_only(void) {
  return NETIF_CHECKSUM_GEN_IP | NETIF_CHECKSUM_GEN_ICMP | NETIF_CHECKSUM_CHECK_IP | NETIF_CHECKSUM_CHECK_UDP |
         NETIF_CHECKSUM_CHECK_TCP | NETIF_CHECKSUM_CHECK_ICMP;
}
static inline uint16_t netif_checksums_check_transport(void) { return NETIF_CHECKSUM_CHECK_UDP | NETIF_CHECKSUM_CHECK_TCP; }
static inline void set_lwip_heap(uint8_t *memory) { lwip_heap = memory; }
static inline size_t lwip_heap_size(void) { return LAB_HEAP_SIZE; }
