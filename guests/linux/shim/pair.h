// /dev/minivmm-pair (patches/0010), for libraries that are preloaded into servers.
#pragma once
#include "../init/sys.h"
#include <fcntl.h>
#include <sys/types.h>

#define SHOWN __attribute__((visibility("default")))
extern SHOWN int *__errno_location(void);

static long result(long r) {
    if (r >= 0) return r;
    *__errno_location() = (int)-r;
    return -1;
}

#define MOST_SOURCES 12
#define NOT_COPIED UINT32_MAX

struct source {
    uint64_t address;
    uint32_t length;
    uint32_t offset; // in the reply
};

struct send {
    uint64_t iov;
    uint32_t iovCount;
    int32_t socket;
    uint32_t flags;
    uint32_t sourceCount;
    struct source sources[MOST_SOURCES];
};

// What comes next on a socket is sent from the pages that determine it.
struct own {
    int32_t socket;
    uint32_t length;
};

#define PAIR_IOW(n, type) (1u << 30 | (unsigned)sizeof(type) << 16 | 'M' << 8 | (n)) // _IOW
#define PAIR_SEND PAIR_IOW(1, struct send)
#define PAIR_OWN PAIR_IOW(2, struct own)

static int pair = -1;

__attribute__((constructor)) static void openPair(void) {
    pair = (int)SYS_2(open, "/dev/minivmm-pair", O_RDWR | O_CLOEXEC);
}
