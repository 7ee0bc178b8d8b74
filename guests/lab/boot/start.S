// Entry by PVH (32-bit, paging off, EBX = hvm_start_info) and, for the other CPUs, by INIT/SIPI; both lead to long mode
// and from there to CPL3 at once. Ring 0 may be interpreted by the host, so nothing here loops.

#include "layout.inc"

.section .note.pvh, "a", @note
  .balign 4
  .long 4                           // name size
  .long 8                           // descriptor size
  .long 18                          // XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .quad pvh_start

.section .boot, "ax"

.code32
.global pvh_start
pvh_start:
  cld
  movl %ebx, start_info_address
  xorl %ebp, %ebp                   // CPU 0
  lgdt gdt_pointer
  // fall through

// In: 32-bit protected mode on our GDT or flat segments, EBP = CPU number.
enter_long_mode:
  movl $page_map, %eax
  movl %eax, %cr3
  movl $0x620, %eax                 // PAE, OSFXSR, OSXMMEXCPT: CPL3 code uses SSE2
  movl %eax, %cr4
  movl $MSR_EFER, %ecx
  movl $0x100, %eax                 // LME
  xorl %edx, %edx
  wrmsr
  movl $0x80010033, %eax            // PG, WP, NE, ET, MP, PE
  movl %eax, %cr0
  ljmp $SEL_KERNEL_CODE, $in_long_mode

.code64
in_long_mode:
  movl $SEL_KERNEL_DATA, %eax
  movl %eax, %ss
  xorl %eax, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %fs
  movl %eax, %gs
  movl %ebp, %ebp                   // the upper half is undefined after the mode switch

  // TSS descriptor of this CPU; RSP0 is all that is used of the TSS.
  movq %rbp, %rax
  shlq $7, %rax
  leaq task_states(%rax), %rax      // 128 bytes apart
  movq %rbp, %rcx
  incq %rcx
  shlq $12, %rcx
  leaq ring0_pages(%rcx), %rcx      // end of the page = top of the stack
  movq %rcx, %rsp
  movq %rcx, 4(%rax)
  movw $104, 102(%rax)              // no I/O bitmap
  movq %rbp, %rbx
  shlq $4, %rbx
  movw $103, gdt + SEL_TSS + 0(%rbx)
  movw %ax, gdt + SEL_TSS + 2(%rbx)
  shrq $16, %rax
  movb %al, gdt + SEL_TSS + 4(%rbx)
  movb $0x89, gdt + SEL_TSS + 5(%rbx)
  movb $0, gdt + SEL_TSS + 6(%rbx)
  movb %ah, gdt + SEL_TSS + 7(%rbx)
  addl $SEL_TSS, %ebx
  ltr %bx
  lidt idt_pointer

  // To CPL3, interrupts off until the IDT is filled in (by CPL3 code, at native speed).
  pushq $SEL_USER_DATA
  pushq user_stack_top(,%rbp,8)
  pushq $0x2
  pushq $SEL_USER_CODE
  pushq $user_entry
  movq %rbp, %rdi
  iretq

.section .text.user_entry, "ax"
// First code at CPL3, on every CPU. RDI = CPU number.
user_entry:
  movl $SEL_USER_DATA, %eax
  movl %eax, %ds
  movl %eax, %es
  pushq $0x1f80
  ldmxcsr (%rsp)
  popq %rax
  xorl %ebp, %ebp
  testq %rdi, %rdi
  jnz 1f
  movl start_info_address, %edi
  call lab_main
1:
  call lab_secondary_main
  ud2

// The other CPUs start here in real mode; CPL3 copies the page to trampoline_address before the first SIPI.
.section .trampoline, "ax"
.code16
.global ap_trampoline, ap_trampoline_end
ap_trampoline:
  cli
  cld
  movw %cs, %ax
  movw %ax, %ds
  lgdtl 2f - ap_trampoline
  movl %cr0, %eax
  orb $1, %al
  movl %eax, %cr0
  ljmpl $SEL_BOOT_CODE32, $ap_start32
  .balign 8
2:
  .word gdt_end - gdt - 1
  .long gdt
ap_trampoline_end:

.section .boot, "ax"
.code32
ap_start32:
  movl $SEL_KERNEL_DATA, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  movl starting_cpu, %ebp
  jmp enter_long_mode

.data
  .balign 8
gdt_pointer:
  .word gdt_end - gdt - 1
  .quad gdt
  .balign 8
idt_pointer:
  .word 256 * 16 - 1
  .quad idt

  .balign 16
gdt:
  .quad 0
  .quad 0x00af9b000000ffff          // kernel code, 64-bit
  .quad 0x00cf93000000ffff          // data
  .quad 0x00cff3000000ffff          // user data
  .quad 0x00affb000000ffff          // user code, 64-bit
  .quad 0x00cf9b000000ffff          // 32-bit code, for the way to long mode only
  .fill MAX_CPUS * 2, 8, 0          // TSS descriptors
gdt_end:

.global user_stack_top, starting_cpu, start_info_address
user_stack_top:                     // one per CPU; those after the first are set before the SIPI
  .quad boot_stack_end
  .fill MAX_CPUS - 1, 8, 0
starting_cpu:
  .long 0
start_info_address:
  .long 0

// Identity map of the low 4 GiB, all of it user: 2 MiB pages, but 4 KiB ones at the bottom so that page 0 can be absent.
.section .page_tables, "aw"
  .balign 4096
page_map:
  .quad page_directory_pointers + 7
  .fill 511, 8, 0
page_directory_pointers:
  .quad page_directories + 0x0007
  .quad page_directories + 0x1007
  .quad page_directories + 0x2007
  .quad page_directories + 0x3007
  .fill 508, 8, 0
page_directories:
  .quad low_page_table + 7
  .set address, 0x200000
  .rept 2047
  .quad address + 0x87
  .set address, address + 0x200000
  .endr
low_page_table:
  .quad 0
  .set address, 0x1000
  .rept 511
  .quad address + 7
  .set address, address + 0x1000
  .endr

.bss
  .balign 4096
.global ring0_pages
ring0_pages:
  .skip MAX_CPUS * RING0_PAGE_SIZE
task_states:
  .skip MAX_CPUS * 128
.global idt
idt:
  .skip 256 * 16
boot_stack:
  .skip 128 * 1024
boot_stack_end:
