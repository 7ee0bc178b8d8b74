// System calls and the few string functions that init needs: it is linked without libc, because the C library's start-up
// (relocations, IFUNCs, tunables) costs page faults, and with them time, before the first line of main.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <asm/unistd.h>

static inline long sys6(long n, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return r;
}
#define SYS_1(n, a) sys6(__NR_##n, (long)(a), 0, 0, 0, 0, 0)
#define SYS_2(n, a, b) sys6(__NR_##n, (long)(a), (long)(b), 0, 0, 0, 0)
#define SYS_3(n, a, b, c) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define SYS_4(n, a, b, c, d) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define SYS_5(n, a, b, c, d, e) sys6(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

// vfork must be inlined: the child runs in the caller's frame until it calls execve or exit.
static inline __attribute__((always_inline)) long sys_vfork(void) {
    long r;
    __asm__ volatile("syscall" : "=a"(r) : "a"((long)__NR_vfork) : "rcx", "r11", "memory");
    return r;
}

static inline size_t length(const char *s) {
    size_t n = 0;
    while (s[n]) n++;
    return n;
}

// Does `s` start with `prefix`? Then what follows it, else null.
static inline char *after(const char *s, const char *prefix) {
    while (*prefix)
        if (*s++ != *prefix++) return NULL;
    return (char *)s;
}

static inline int equal(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

// The compiler may emit calls to these.
void *memset(void *p, int c, size_t n) {
    for (char *q = p; n; n--) *q++ = (char)c;
    return p;
}
void *memcpy(void *to, const void *from, size_t n) {
    char *q = to;
    for (const char *p = from; n; n--) *q++ = *p++;
    return to;
}
