// The smallest guest: PVH entry, one byte to the serial port, then rest. Runs on every VMM that boots PVH.
.section .note.pvh, "a", @note
  .balign 4
  .long 4                           // name size
  .long 8                           // descriptor size
  .long 18                          // XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .quad _start

.text
.code32
.global _start
_start:
  movl $0x3f8, %edx
  movb $'H', %al
  outb %al, %dx
1:
  cli
  hlt
  jmp 1b

.section .note.GNU-stack, "", @progbits
