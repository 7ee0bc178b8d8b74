// What Swift needs of the machine and of the assembly files: single instructions and symbols.
#pragma once
#include <stddef.h>
#include <stdint.h>

// boot/start.S and boot/stubs.S
extern uint8_t image_end[], text_start[], text_end[];
extern uint8_t ring0_pages[];
extern uint64_t idt[];
extern uint64_t exception_table[];
extern uint64_t lapic_base;
extern uint64_t user_stack_top[];
extern uint32_t starting_cpu;
extern uint8_t ap_trampoline[], ap_trampoline_end[];
void interrupt_x2apic(void);
void interrupt_xapic(void);
void interrupt_spurious(void);
uint64_t ring0_call(uint64_t number, uint64_t a, uint64_t b, uint64_t c);

static inline uint64_t image_end_address(void) { return (uint64_t)image_end; }
static inline uint64_t text_start_address(void) { return (uint64_t)text_start; }
static inline uint64_t text_end_address(void) { return (uint64_t)text_end; }
static inline uint64_t ring0_page_address(uint32_t cpu) { return (uint64_t)ring0_pages + 4096ull * cpu; }
static inline uint64_t idt_address(void) { return (uint64_t)idt; }
static inline uint64_t exception_stub_address(uint32_t vector) { return exception_table[vector]; }
static inline uint64_t interrupt_x2apic_address(void) { return (uint64_t)interrupt_x2apic; }
static inline uint64_t interrupt_xapic_address(void) { return (uint64_t)interrupt_xapic; }
static inline uint64_t interrupt_spurious_address(void) { return (uint64_t)interrupt_spurious; }
static inline uint64_t trampoline_address(void) { return (uint64_t)ap_trampoline; }
static inline uint64_t trampoline_size(void) { return (uint64_t)(ap_trampoline_end - ap_trampoline); }
static inline void set_user_stack(uint32_t cpu, uint64_t top) { user_stack_top[cpu] = top; }
static inline void set_starting_cpu(uint32_t cpu) { starting_cpu = cpu; }

// Single instructions.
static inline void cpu_pause(void) { __asm__ volatile("pause" ::: "memory"); }
static inline uint64_t cpu_tsc(void) {
  uint32_t low, high;
  __asm__ volatile("lfence; rdtsc" : "=a"(low), "=d"(high)::"memory");
  return (uint64_t)high << 32 | low;
}
static inline void cpu_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline uint64_t cpu_stack_pointer(void) {
  uint64_t value;
  __asm__ volatile("movq %%rsp, %0" : "=r"(value));
  return value;
}
/// a * b / 2^32 without overflow in between.
static inline uint64_t multiply_shift32(uint64_t a, uint32_t b) {
  return (uint64_t)(((unsigned __int128)a * b) >> 32);
}

// Device registers: one plain load or store each, which is what a hypervisor's decoder knows best.
static inline uint32_t mmio_read32(uint64_t a) {
  uint32_t v;
  __asm__ volatile("movl (%1), %0" : "=r"(v) : "r"(a) : "memory");
  return v;
}
/// Stores before stay before those behind, which another processor needs on x86 (stores are seen in their order).
static inline void cpu_compiler_barrier(void) { __asm__ volatile("" ::: "memory"); }
static inline void mmio_write32(uint64_t a, uint32_t v) { __asm__ volatile("movl %0, (%1)" ::"r"(v), "r"(a) : "memory"); }
static inline uint8_t mmio_read8(uint64_t a) {
  uint8_t v;
  __asm__ volatile("movb (%1), %0" : "=q"(v) : "r"(a) : "memory");
  return v;
}
static inline void mmio_write8(uint64_t a, uint8_t v) { __asm__ volatile("movb %0, (%1)" ::"q"(v), "r"(a) : "memory"); }
static inline uint16_t mmio_read16(uint64_t a) {
  uint16_t v;
  __asm__ volatile("movw (%1), %0" : "=r"(v) : "r"(a) : "memory");
  return v;
}
static inline void mmio_write16(uint64_t a, uint16_t v) { __asm__ volatile("movw %0, (%1)" ::"r"(v), "r"(a) : "memory"); }
static inline uint64_t mmio_read64(uint64_t a) {
  uint64_t v;
  __asm__ volatile("movq (%1), %0" : "=r"(v) : "r"(a) : "memory");
  return v;
}
static inline void mmio_write64(uint64_t a, uint64_t v) { __asm__ volatile("movq %0, (%1)" ::"r"(v), "r"(a) : "memory"); }

// Memory shared with a device or another CPU.
static inline uint16_t load16(const void *p) { return __atomic_load_n((const uint16_t *)p, __ATOMIC_ACQUIRE); }
static inline void store16(void *p, uint16_t v) { __atomic_store_n((uint16_t *)p, v, __ATOMIC_RELEASE); }
static inline uint32_t load32(const void *p) { return __atomic_load_n((const uint32_t *)p, __ATOMIC_ACQUIRE); }
static inline void store32(void *p, uint32_t v) { __atomic_store_n((uint32_t *)p, v, __ATOMIC_RELEASE); }
static inline uint64_t load64(const void *p) { return __atomic_load_n((const uint64_t *)p, __ATOMIC_ACQUIRE); }
static inline void store64(void *p, uint64_t v) { __atomic_store_n((uint64_t *)p, v, __ATOMIC_RELEASE); }
static inline uint32_t exchange32(void *p, uint32_t v) { return __atomic_exchange_n((uint32_t *)p, v, __ATOMIC_SEQ_CST); }
