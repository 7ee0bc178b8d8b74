// Preloaded into nginx where it serves files that do not change: says of what sendfile() sends that it is made of the file's pages in
// memory, which the card is handed themselves. Without /dev/minivmm-pair it only passes calls on.
//
// What is said is a promise: as long as those pages hold these bytes, the answer is the same, and it confirms no write. It is kept by
// a server of static files (disk/nginx.conf); one that answers uploads or forwards requests must not be preloaded with this.
#include "pair.h"

SHOWN ssize_t sendfile64(int to, int from, off_t *offset, size_t n) {
    struct own own = {to, n < 1u << 30 ? (uint32_t)n : 1u << 30};
    if (pair >= 0) SYS_3(ioctl, pair, PAIR_OWN, &own);
    return result(SYS_4(sendfile, to, from, offset, n));
}

SHOWN ssize_t sendfile(int to, int from, off_t *offset, size_t n) { return sendfile64(to, from, offset, n); }
