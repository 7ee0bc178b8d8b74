// lwIP's view of compiler and platform.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LWIP_NO_STDIO_H 1
#define X8_F "02x"
#define U16_F "u"
#define S16_F "d"
#define X16_F "x"
#define U32_F "u"
#define S32_F "d"
#define X32_F "x"
#define SZT_F "lu"

typedef uintptr_t mem_ptr_t;

extern uint8_t *lwip_heap;
void lab_assertion(const char *message);
uint32_t lab_random(void);
int atoi(const char *s);

#define LWIP_PLATFORM_DIAG(x) do { } while (0)
#define LWIP_PLATFORM_ASSERT(message) lab_assertion(message)
#define LWIP_RAND() lab_random()
#define PACK_STRUCT_STRUCT __attribute__((packed))
#define BYTE_ORDER LITTLE_ENDIAN
