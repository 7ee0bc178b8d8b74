// All code that runs at CPL0 after start-up: exception and interrupt stubs and the call interface.
// The host may interpret it (no SSE, popcnt, int3, long string instructions), so it is short.

#include "layout.inc"

.section .text.stubs, "ax"
.code64

// ---- Exceptions: note everything in exception_record, report it at CPL3.

.macro exception vector, has_error_code
exception_\vector:
  .if \has_error_code == 0
  pushq $0
  .endif
  pushq $\vector
  jmp exception_common
.endm

.irp vector, 0,1,2,3,4,5,7,9,15,16,18,19,20,22,23,24,25,26,27,28,31
exception \vector, 0
.endr
.irp vector, 8,10,11,12,13,14,17,21,29,30
exception \vector, 1
.endr

// #UD is the door to ring 0: an ud2 at ring0_call is a call, at any other place an exception. ud2 is a fault, so RIP
// still points at it.
exception_6:
  cmpq $ring0_call, (%rsp)
  jne 1f
  addq $2, (%rsp)
  cmpq $(call_table_end - call_table) / 8, %rdi
  jae 2f
  jmp *call_table(,%rdi,8)
1:
  pushq $0
  pushq $6
  jmp exception_common
2:
  movq $-1, %rax
  iretq

exception_common:
  cmpl $0, exception_taken
  jne crash                         // an exception while reporting one
  movl $1, exception_taken
  movq %rax, exception_record + 64
  popq %rax
  movq %rax, exception_record + 0   // vector
  popq %rax
  movq %rax, exception_record + 8   // error code
  movq 0(%rsp), %rax
  movq %rax, exception_record + 16  // RIP
  movq 8(%rsp), %rax
  movq %rax, exception_record + 24  // CS
  movq 16(%rsp), %rax
  movq %rax, exception_record + 32  // RFLAGS
  movq 24(%rsp), %rax
  movq %rax, exception_record + 40  // RSP
  movq %cr2, %rax
  movq %rax, exception_record + 48
  movq %rbp, exception_record + 56
  movq %rbx, exception_record + 72
  movq %rcx, exception_record + 80
  movq %rdx, exception_record + 88
  movq %rsi, exception_record + 96
  movq %rdi, exception_record + 104
  pushq $SEL_USER_DATA
  pushq $exception_stack_end - 8
  pushq $0x2
  pushq $SEL_USER_CODE
  pushq $lab_exception
  movl $exception_record, %edi
  iretq

crash:
  movw $0x505, %dx
  movb $1, %al
  outb %al, %dx
1:
  cli
  hlt
  jmp 1b

// ---- Interrupts: note that one came, end it. What it was for is found by looking at the rings.

.macro interrupt_body
  pushq %rax
  movq %rsp, %rax
  andq $-RING0_PAGE_SIZE, %rax
  movl $1, RING0_WOKEN(%rax)
  incq RING0_INTERRUPTS(%rax)
.endm

.balign 16
.global interrupt_x2apic
interrupt_x2apic:
  interrupt_body
  pushq %rcx
  pushq %rdx
  movl $MSR_X2APIC_EOI, %ecx
  xorl %eax, %eax
  xorl %edx, %edx
  wrmsr
  popq %rdx
  popq %rcx
  popq %rax
  iretq

.balign 16
.global interrupt_xapic
interrupt_xapic:
  interrupt_body
  movq lapic_base, %rax
  movl $0, 0xb0(%rax)
  popq %rax
  iretq

.balign 16
.global interrupt_spurious
interrupt_spurious:                 // no EOI for a spurious interrupt
  iretq

// ---- Calls: RDI = number, RSI, RDX, RCX = arguments, RAX = result; caller-saved registers may be lost.

.section .text.ring0_call, "ax"
.balign 16
.global ring0_call
ring0_call:
  ud2
  ret

.section .text.stubs, "ax"
call_console:                       // (bytes, count): COM1, 16 bytes each time the transmitter is empty
  movq %rdx, %rcx
1:
  testq %rcx, %rcx
  jz 5f
  movl $0x3fd, %edx
  movl $100000, %r9d
2:
  inb %dx, %al
  testb $0x20, %al
  jnz 3f
  decl %r9d
  jnz 2b
3:
  movl $0x3f8, %edx
  movl $16, %r8d
4:
  movb (%rsi), %al
  outb %al, %dx
  incq %rsi
  decq %rcx
  jz 5f
  decl %r8d
  jnz 4b
  jmp 1b
5:
  iretq

call_out8:                          // (port, value)
  movq %rdx, %rax
  movl %esi, %edx
  outb %al, %dx
  iretq

call_out16:                         // (port, value)
  movq %rdx, %rax
  movl %esi, %edx
  outw %ax, %dx
  iretq

call_out32:                         // (port, value)
  movq %rdx, %rax
  movl %esi, %edx
  outl %eax, %dx
  iretq

call_in8:                           // (port)
  movl %esi, %edx
  xorl %eax, %eax
  inb %dx, %al
  iretq

call_in16:                          // (port)
  movl %esi, %edx
  xorl %eax, %eax
  inw %dx, %ax
  iretq

call_in32:                          // (port)
  movl %esi, %edx
  inl %dx, %eax
  iretq

call_idle:                          // (TSC deadline or 0): wait for an interrupt unless one has come
  movq %rsp, %rcx
  andq $-RING0_PAGE_SIZE, %rcx
  cmpl $0, RING0_WOKEN(%rcx)
  jne 2f
  testq %rsi, %rsi
  jz 1f
  movl $MSR_TSC_DEADLINE, %ecx
  movl %esi, %eax
  movq %rsi, %rdx
  shrq $32, %rdx
  wrmsr
1:
  sti                               // takes effect after hlt has begun: no interrupt is lost between
  hlt
  cli
2:
  iretq

call_write_msr:                     // (number, value)
  movl %esi, %ecx
  movl %edx, %eax
  shrq $32, %rdx
  wrmsr
  iretq

call_read_msr:                      // (number)
  movl %esi, %ecx
  rdmsr
  shlq $32, %rdx
  orq %rdx, %rax
  iretq

call_cpuid:                         // (leaf, subleaf, pointer to four u32)
  movq %rcx, %r8
  movq %rbx, %r9
  movl %esi, %eax
  movl %edx, %ecx
  cpuid
  movl %eax, 0(%r8)
  movl %ebx, 4(%r8)
  movl %ecx, 8(%r8)
  movl %edx, 12(%r8)
  movq %r9, %rbx
  iretq

call_interrupts:                    // (1 or 0): the interrupt flag of the caller
  shlq $9, %rsi
  andq $~0x200, 16(%rsp)
  orq %rsi, 16(%rsp)
  iretq

call_out8_loop:                     // (port, count): one exit a turn
  movq %rdx, %rcx
  movl %esi, %edx
  xorl %eax, %eax
1:
  outb %al, %dx
  decq %rcx
  jnz 1b
  iretq

call_read_tsc:                      // the TSC as ring 0 sees it
  rdtsc
  shlq $32, %rdx
  orq %rdx, %rax
  iretq

call_triple_fault:
  lidt no_idt
  ud2

call_halt_forever:                  // HLT with interrupts off
  hlt
  jmp call_halt_forever

call_out_string:                    // (port, bytes, count): rep outsb
  movq %rdx, %rax
  movl %esi, %edx
  movq %rax, %rsi
  rep outsb
  iretq

call_in_string:                     // (port, bytes, count): rep insb
  movl %esi, %r8d
  movq %rdx, %rdi
  movl %r8d, %edx
  rep insb
  iretq

.section .rodata
.balign 8
call_table:                         // the order of Ring0Call in Kernel/Ring0.swift
  .quad call_console
  .quad call_out8
  .quad call_out16
  .quad call_out32
  .quad call_in8
  .quad call_in16
  .quad call_in32
  .quad call_idle
  .quad call_write_msr
  .quad call_read_msr
  .quad call_cpuid
  .quad call_interrupts
  .quad call_out8_loop
  .quad call_read_tsc
  .quad call_triple_fault
  .quad call_halt_forever
  .quad call_out_string
  .quad call_in_string
call_table_end:

.global exception_table
exception_table:
.irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
  .quad exception_\vector
.endr

no_idt:
  .word 0
  .quad 0

.data
.balign 8
.global lapic_base
lapic_base:
  .quad 0xfee00000

.bss
.balign 16
exception_taken:
  .skip 16
exception_record:
  .skip 128
.global lab_exception_stack
lab_exception_stack:
  .skip 16384
exception_stack_end:
