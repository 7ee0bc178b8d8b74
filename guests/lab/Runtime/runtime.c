// The few functions compilers and lwIP expect of a C library. All of it runs at CPL3.
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *restrict to, const void *restrict from, size_t n) {
  uint8_t *d = to;
  const uint8_t *s = from;
  if (n > 256) {
    void *result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
    return result;
  }
  for (; n >= 8; n -= 8, d += 8, s += 8) __builtin_memcpy_inline(d, s, 8);
  for (; n; n--) *d++ = *s++;
  return to;
}

void *memmove(void *to, const void *from, size_t n) {
  uint8_t *d = to;
  const uint8_t *s = from;
  if ((uintptr_t)d - (uintptr_t)s >= n) return memcpy(to, from, n);
  while (n--) {
    d[n] = s[n];
    __asm__ volatile("" ::: "memory");  // keep this a loop: it must not become a call of memmove
  }
  return to;
}

void *memset(void *to, int byte, size_t n) {
  void *p = to;
  __asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(byte) : "memory");
  return to;
}

int memcmp(const void *a, const void *b, size_t n) {
  const uint8_t *x = a, *y = b;
  for (; n >= 8; n -= 8, x += 8, y += 8) {
    uint64_t u, v;
    __builtin_memcpy_inline(&u, x, 8);
    __builtin_memcpy_inline(&v, y, 8);
    if (u != v) break;
  }
  for (; n; n--, x++, y++)
    if (*x != *y) return *x - *y;
  return 0;
}

size_t strlen(const char *s) {
  size_t n = 0;
  while (s[n]) n++;
  return n;
}

int strncmp(const char *a, const char *b, size_t n) {
  for (; n; n--, a++, b++)
    if (*a != *b || !*a) return (uint8_t)*a - (uint8_t)*b;
  return 0;
}

int strcmp(const char *a, const char *b) { return strncmp(a, b, ~(size_t)0); }

int atoi(const char *s) {
  int value = 0;
  while (*s >= '0' && *s <= '9') value = value * 10 + (*s++ - '0');
  return value;
}

uint8_t *lwip_heap;  // set before lwip_init
