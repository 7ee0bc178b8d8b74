// lwIP as the lab guest uses it: raw API, one thread, one interface, all memory in fixed pools.
#pragma once

#define NO_SYS 1
#define SYS_LIGHTWEIGHT_PROT 0
#define LWIP_NETCONN 0
#define LWIP_SOCKET 0
#define LWIP_NO_CTYPE_H 1
#define LWIP_NO_LIMITS_H 1
#define LWIP_NO_UNISTD_H 1
#define LWIP_NO_INTTYPES_H 1

#define LWIP_IPV4 1
#define LWIP_SINGLE_NETIF 1
#define LWIP_IPV6 1
#define LWIP_IPV6_MLD 0  // its timer would wake an idle guest ten times a second
#define LWIP_IPV6_DUP_DETECT_ATTEMPTS 0  // addresses are good when services are announced
#define LWIP_IPV6_AUTOCONFIG 0
#define LWIP_IPV6_SEND_ROUTER_SOLICIT 0
#define LWIP_IPV6_DHCP6 0
#define IPV6_FRAG_COPYHEADER 1  // pointers are larger than what a fragment header has room for
#define LWIP_ND6_NUM_NEIGHBORS 64
#define LWIP_ND6_NUM_DESTINATIONS 64
#define MEMP_NUM_ND6_QUEUE 64
#define LWIP_ARP 1
#define LWIP_ICMP 1
#define LWIP_UDP 1
#define LWIP_TCP 1
#define LWIP_DNS 0
#define LWIP_DHCP 0
#define LWIP_IGMP 0
#define LWIP_RAW 0
#define LWIP_NETIF_API 0
#define IP_REASSEMBLY 1
#define IP_FRAG 1
#define LWIP_NETIF_TX_SINGLE_PBUF 0
#define LWIP_SUPPORT_CUSTOM_PBUF 1
#define ARP_QUEUEING 1

// Memory. The heap holds headers and copied data; payload of large values is sent from where it is.
#define MEM_ALIGNMENT 16
#define LAB_HEAP_SIZE (8 * 1024 * 1024)
#define MEM_SIZE (LAB_HEAP_SIZE - 4096)
#define LWIP_RAM_HEAP_POINTER lwip_heap  // from the arena, so that the image stays small
#define MEM_LIBC_MALLOC 0
#define MEMP_MEM_MALLOC 0
#define MEMP_NUM_TCP_PCB 512
#define MEMP_NUM_TCP_PCB_LISTEN 8
#define MEMP_NUM_UDP_PCB 8
#define MEMP_NUM_TCP_SEG 16384
#define MEMP_NUM_PBUF 16384
#define MEMP_NUM_ARP_QUEUE 64
#define MEMP_NUM_SYS_TIMEOUT (LWIP_NUM_SYS_TIMEOUT_INTERNAL + 2)
#define PBUF_POOL_SIZE 16
#define TCP_LISTEN_BACKLOG 1
#define TCP_DEFAULT_LISTEN_BACKLOG 255

// TCP
#define TCP_MSS 1460
#define LWIP_WND_SCALE 1
#define TCP_RCV_SCALE 2
#define TCP_WND (128 * 1024)
#define TCP_SND_BUF (256 * 1024)
#define TCP_SND_QUEUELEN 1024
#define TCP_SNDLOWAT (48 * 1024)
#define TCP_SNDQUEUELOWAT 256
#define TCP_OVERSIZE TCP_MSS
#define LWIP_DISABLE_TCP_SANITY_CHECKS 1  // they compare the window with PBUF_POOL, which is not used here
#define TCP_QUEUE_OOSEQ 1
#define TCP_OOSEQ_MAX_PBUFS 64
#define LWIP_TCP_TIMESTAMPS 0
#define LWIP_TCP_SACK_OUT 1
#define LWIP_TCP_KEEPALIVE 1
#define TCP_MSL 1000UL
unsigned initial_sequence(unsigned ticks);
#define LWIP_HOOK_TCP_ISN(local, local_port, remote, remote_port) initial_sequence(tcp_ticks)
#define SO_REUSE 1

// Checksums are left to the device where it offers that: decided for each interface and, on receive, each frame.
#define LWIP_CHECKSUM_CTRL_PER_NETIF 1
#define LWIP_CHKSUM_ALGORITHM 3

// Only how much of heap and pools is in use.
#define LWIP_STATS 1
#define LWIP_STATS_LARGE 1
#define MEM_STATS 1
#define MEMP_STATS 1
#define LINK_STATS 0
#define ETHARP_STATS 0
#define IP_STATS 0
#define IPFRAG_STATS 0
#define ICMP_STATS 0
#define UDP_STATS 0
#define TCP_STATS 0
#define SYS_STATS 0
#define LWIP_DEBUG 0
