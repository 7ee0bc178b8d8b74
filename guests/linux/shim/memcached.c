// Preloaded into memcached (Debian's 1.6.18, 64-bit): says what its replies to `get` and `gets` are made of, and sends them, in one
// system call on /dev/minivmm-pair (patches/0010). Without that device it only passes calls on.
//
// What is said is a promise: as long as these ranges hold these bytes, the answer is the same, and it confirms no write. So a
// message is marked only if all of it is hits that answer all keys of the requests read last, and each hit is an item without
// expiry which memory shows as it is answered. Misses depend on more than their bytes, and are never marked. Where the shim has
// lost track of a connection's requests it marks nothing of it; after a flush_all, which changes answers and no item, nothing ever.
#include "pair.h"
#include <sys/socket.h>
#include <sys/uio.h>

static volatile int refuses; // marks nothing any more

static int marks(void) { return pair >= 0 && !refuses; }

// MARK: requests

#define MOST_CONNECTIONS 4096
#define MOST_KEY 250

struct connection {
    enum { UNKNOWN, NEW, FOLLOWED } state;
    uint64_t skip;         // bytes of a value still to come
    uint32_t flush;        // how much of "flush_all" has been seen
    uint32_t keys, lines;  // of the last read, when that was whole lines of get and gets and nothing else
    uint64_t hash;         // of those keys
};

static struct connection connections[MOST_CONNECTIONS];

#define NO_KEYS 0xcbf29ce484222325ull // FNV-1a
static uint64_t withKey(uint64_t hash, const char *key, size_t n) {
    for (size_t i = 0; i <= n; i++) hash = (hash ^ (i < n ? (uint8_t)key[i] : ' ')) * 0x100000001b3ull;
    return hash;
}

// The next word of a line: words are separated by single blanks. 0 when there is none, or an empty one.
static size_t word(const char **at, const char *end, const char **start) {
    const char *p = *at;
    *start = p;
    while (p < end && *p != ' ') p++;
    size_t n = (size_t)(p - *start);
    *at = p < end ? p + 1 : p;
    return n;
}

static int is(const char *s, size_t n, const char *name) {
    for (; n && *s == *name; n--) s++, name++;
    return !n && !*name;
}

// A number of at most 9 digits, or -1.
static long number(const char *s, size_t n) {
    long value = 0;
    if (!n || n > 9) return -1;
    for (; n; n--, s++) {
        if (*s < '0' || *s > '9') return -1;
        value = value * 10 + (*s - '0');
    }
    return value;
}

// Follows one command. False: what comes behind it is not known.
static int command(struct connection *c, const char *line, const char *end, int *isGet) {
    const char *at = line, *s;
    size_t n = word(&at, end, &s);
    *isGet = is(s, n, "get") || is(s, n, "gets");
    if (*isGet) {
        int keys = 0;
        while (at < end) {
            n = word(&at, end, &s);
            if (!n || n > MOST_KEY) return 0;
            c->hash = withKey(c->hash, s, n);
            c->keys++, keys++;
        }
        c->lines++;
        return keys && end[-1] != ' ';
    }
    int cas = is(s, n, "cas");
    if (cas || is(s, n, "set") || is(s, n, "add") || is(s, n, "replace") || is(s, n, "append") || is(s, n, "prepend")) {
        n = word(&at, end, &s);
        if (!n || n > MOST_KEY) return 0;
        n = word(&at, end, &s);
        if (number(s, n) < 0) return 0;
        n = word(&at, end, &s);
        if (number(s, n) < 0) return 0;
        n = word(&at, end, &s);
        long bytes = number(s, n);
        if (bytes < 0) return 0;
        if (cas) {
            n = word(&at, end, &s);
            if (!n || n > 19) return 0;
            for (size_t i = 0; i < n; i++)
                if (s[i] < '0' || s[i] > '9') return 0;
        }
        n = word(&at, end, &s);
        if (at != end || (n && !is(s, n, "noreply"))) return 0;
        c->skip = (uint64_t)bytes + 2;
        return 1;
    }
    return is(s, n, "delete") || is(s, n, "incr") || is(s, n, "decr") || is(s, n, "touch") || is(s, n, "stats") || is(s, n, "version");
}

// Wherever it stands: one in a value costs no more than early replies.
static void lookForFlush(struct connection *c, const char *s, size_t n) {
    static const char name[] = "flush_all";
    uint32_t seen = c->flush;
    for (size_t i = 0; i < n; i++) {
        seen = s[i] == name[seen] ? seen + 1 : s[i] == name[0];
        if (!name[seen]) {
            refuses = 1;
            seen = 0;
        }
    }
    c->flush = seen;
}

static void follow(struct connection *c, const char *s, size_t n) {
    const char *end = s + n;
    lookForFlush(c, s, n);
    if (c->state == NEW && (uint8_t)*s == 0x80) refuses = 1; // the binary protocol, which has a flush of its own
    int allGets = c->state != UNKNOWN;
    c->keys = c->lines = 0;
    c->hash = NO_KEYS;
    if (c->state == NEW) c->state = FOLLOWED;
    while (s < end && c->state == FOLLOWED) {
        if (c->skip) {
            uint64_t taken = c->skip < (uint64_t)(end - s) ? c->skip : (uint64_t)(end - s);
            c->skip -= taken;
            s += taken;
            allGets = 0;
            continue;
        }
        const char *line = s;
        while (s < end && *s != '\n') s++;
        int isGet = 0;
        // A line in two parts is not worth keeping the first.
        if (s == end || s == line || s[-1] != '\r' || !command(c, line, s - 1, &isGet)) c->state = UNKNOWN;
        else s++;
        allGets &= isGet;
    }
    if (!allGets || c->state != FOLLOWED) c->keys = 0;
}

static struct connection *connection(int fd) { return fd >= 0 && fd < MOST_CONNECTIONS ? &connections[fd] : NULL; }

SHOWN ssize_t read(int fd, void *to, size_t n) {
    long r = SYS_3(read, fd, to, n);
    struct connection *c = connection(fd);
    if (r > 0 && c && pair >= 0 && !refuses) follow(c, to, (size_t)r);
    return result(r);
}

static int accepted(long r) {
    struct connection *c = connection((int)r);
    if (c) *c = (struct connection){.state = NEW};
    else if (r >= 0) refuses = 1; // not followed: it may flush
    return (int)result(r);
}

SHOWN int accept(int fd, struct sockaddr *address, socklen_t *size) { return accepted(SYS_3(accept, fd, address, size)); }
SHOWN int accept4(int fd, struct sockaddr *address, socklen_t *size, int flags) {
    return accepted(SYS_4(accept4, fd, address, size, flags));
}

// Requests that come any other way (UDP) are not followed.
SHOWN ssize_t recvfrom(int fd, void *to, size_t n, int flags, struct sockaddr *address, socklen_t *size) {
    refuses = 1;
    return result(sys6(__NR_recvfrom, fd, (long)to, (long)n, flags, (long)address, (long)size));
}
SHOWN ssize_t recvmsg(int fd, struct msghdr *message, int flags) {
    refuses = 1;
    return result(SYS_3(recvmsg, fd, message, flags));
}

// MARK: replies

// memcached.h, struct _stritem. Behind it the key, a 0, and with ITEM_CFLAGS four bytes of client flags; then the value.
struct item {
    void *next, *previous, *chain;
    uint32_t time;
    uint32_t expiry;
    int32_t bytes;
    uint16_t references;
    uint16_t flags;
    uint8_t class;
    uint8_t keyLength;
    uint64_t cas; // unique for each store: a value that comes back comes with another
    char key[];
};
_Static_assert(offsetof(struct item, flags) == 38 && offsetof(struct item, key) == 56, "as memcached 1.6.18 has it");

#define ITEM_LINKED 1
#define ITEM_CAS 2
#define ITEM_FETCHED 8
#define ITEM_ACTIVE 16
#define ITEM_CFLAGS 256

static int same(const char *a, const char *b, size_t n) {
    for (; n; n--)
        if (*a++ != *b++) return 0;
    return 1;
}

// The item whose value this is, if it is one that answers `key` for good.
static const struct item *itemOf(const char *value, size_t bytes, const char *key, size_t keyLength) {
    for (int extra = 0; extra <= 4; extra += 4) {
        uintptr_t address = (uintptr_t)value - sizeof(struct item) - keyLength - 1 - (uintptr_t)extra;
        if (address % 8) continue;
        const struct item *item = (const struct item *)address;
        uint16_t known = ITEM_LINKED | ITEM_CAS | ITEM_FETCHED | ITEM_ACTIVE | ITEM_CFLAGS;
        if ((item->flags & (ITEM_LINKED | ITEM_CAS)) == (ITEM_LINKED | ITEM_CAS) && !(item->flags & ~known)
            && !(item->flags & ITEM_CFLAGS) == !extra && item->keyLength == keyLength && (size_t)item->bytes == bytes
            && !item->expiry && same(item->key, key, keyLength) && !item->key[keyLength])
            return item;
    }
    return NULL;
}

static void add(struct send *send, const void *from, const void *to, uint32_t offset) {
    send->sources[send->sourceCount++] =
        (struct source){(uint64_t)(uintptr_t)from, (uint32_t)((const char *)to - (const char *)from), offset};
}

// Names what a message is made of. False when that is not surely all hits.
static int describe(struct send *send, const struct iovec *iov, size_t count, const struct connection *c) {
    uint64_t hash = NO_KEYS;
    uint32_t keys = 0, lines = 0, offset = 0;
    for (size_t i = 0; i < count;) {
        const char *head = iov[i].iov_base;
        size_t n = iov[i].iov_len;
        if (keys && n == 5 && same(head, "END\r\n", 5)) {
            lines++, offset += 5, i++;
            continue;
        }
        // VALUE <key> <flags> <bytes>[ <cas>]\r\n
        if (n < 8 || !same(head, "VALUE ", 6) || i + 1 == count || send->sourceCount + 3 > MOST_SOURCES) return 0;
        const char *at = head + 6, *end = head + n - 2, *key, *s;
        size_t keyLength = word(&at, end, &key);
        word(&at, end, &s);
        size_t digits = word(&at, end, &s);
        const char *value = iov[i + 1].iov_base;
        size_t bytes = iov[i + 1].iov_len;
        if (!keyLength || number(s, digits) + 2 != (long)bytes) return 0;
        const struct item *item = itemOf(value, bytes, key, keyLength);
        if (!item) return 0;
        add(send, &item->expiry, &item->references, NOT_COPIED);
        add(send, &item->flags, value, NOT_COPIED); // with CAS id, key and client flags
        add(send, value, value + bytes, offset + (uint32_t)n);
        hash = withKey(hash, key, keyLength);
        keys++, offset += (uint32_t)(n + bytes), i += 2;
    }
    return keys && keys == c->keys && lines == c->lines && hash == c->hash;
}

SHOWN ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    struct connection *c = connection(fd);
    if (c && c->keys && marks() && !message->msg_name && !message->msg_controllen) {
        struct send send;
        send.sourceCount = 0;
        if (describe(&send, message->msg_iov, message->msg_iovlen, c)) {
            c->keys = 0; // answered
            send.iov = (uint64_t)(uintptr_t)message->msg_iov;
            send.iovCount = (uint32_t)message->msg_iovlen;
            send.socket = fd;
            send.flags = (uint32_t)flags;
            return result(SYS_3(ioctl, pair, PAIR_SEND, &send));
        }
        c->keys = 0;
    }
    return result(SYS_3(sendmsg, fd, message, flags));
}
