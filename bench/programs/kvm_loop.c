// The bare KVM_RUN loop that minivmm is compared with: boots the lab guest by PVH, answers what its console and its
// device discovery need, and nothing else.
//
// usage: kvm_loop KERNEL COMMAND-LINE [--interrupt]
// With --interrupt every read of the virtio window's first register also sends the guest an interrupt, so that one turn
// costs what a request at least costs: an exit, and the interrupt that answers it.
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ram_size = 64 << 20, window = 0xd0000000, start_info = 0x1000, memory_map = 0x2000, command_line = 0x3000 };

static uint8_t *ram;

static int check(int result, const char *what) {
  if (result < 0) err(1, "%s", what);
  return result;
}

// Loads the segments; returns the PVH entry.
static uint32_t load(const char *path) {
  int file = check(open(path, O_RDONLY), path);
  off_t size = lseek(file, 0, SEEK_END);
  uint8_t *image = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (image == MAP_FAILED) err(1, "mmap of %s", path);
  const Elf64_Ehdr *header = (const void *)image;
  const Elf64_Phdr *segment = (const void *)(image + header->e_phoff);
  uint32_t entry = 0;
  for (int i = 0; i < header->e_phnum; i++) {
    if (segment[i].p_type == PT_LOAD && segment[i].p_paddr + segment[i].p_memsz <= ram_size)
      memcpy(ram + segment[i].p_paddr, image + segment[i].p_offset, segment[i].p_filesz);
    if (segment[i].p_type == PT_NOTE) {
      const Elf64_Nhdr *note = (const void *)(image + segment[i].p_offset);
      if (note->n_type == 18) memcpy(&entry, (const uint8_t *)(note + 1) + ((note->n_namesz + 3) & ~3u), 4);
    }
  }
  if (!entry) errx(1, "%s has no PVH entry", path);
  return entry;
}

static void describe_machine(const char *words) {
  struct { uint32_t magic, version, flags, modules; uint64_t module_list, command, rsdp, map; uint32_t count, zero; }
    info = {0x336ec578, 1, 0, 0, 0, command_line, 0, memory_map, 1, 0};
  struct { uint64_t start, size; uint32_t type, zero; } region = {0, ram_size, 1, 0};
  memcpy(ram + start_info, &info, sizeof info);
  memcpy(ram + memory_map, &region, sizeof region);
  snprintf((char *)ram + command_line, 4096, "%s virtio_mmio.device=4K@0x%x:5", words, window);
}

static void set_up_cpu(int kvm, int cpu, uint32_t entry) {
  struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[256]; } cpuid = {.head.nent = 256};
  check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
  check(ioctl(cpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
  struct kvm_sregs sregs;
  check(ioctl(cpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
  struct kvm_segment flat = {.limit = ~0u, .selector = 0x18, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
  sregs.cs = flat;
  sregs.cs.selector = 8;
  sregs.cs.type = 11;
  sregs.tr.type = 11;
  sregs.cr0 = 0x11;
  check(ioctl(cpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = entry, .rbx = start_info, .rflags = 2};
  check(ioctl(cpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

// The registers of a virtio window that say "a block device is here".
static uint32_t window_register(uint64_t offset) {
  return offset == 0 ? 0x74726976 : offset == 4 ? 2 : offset == 8 ? 2 : 0;
}

int main(int argc, char **argv) {
  if (argc < 3) errx(64, "usage: kvm_loop KERNEL COMMAND-LINE [--interrupt]");
  int interrupts = argc > 3 && !strcmp(argv[3], "--interrupt");
  int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
  int vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  int memory = check(memfd_create("ram", MFD_CLOEXEC), "memfd_create");
  check(ftruncate(memory, ram_size), "ftruncate");
  ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  if (ram == MAP_FAILED) err(1, "mmap of RAM");
  check(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
  struct kvm_userspace_memory_region slot = {.memory_size = ram_size, .userspace_addr = (uintptr_t)ram};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
  check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
  struct kvm_pit_config pit = {.flags = KVM_PIT_SPEAKER_DUMMY};
  check(ioctl(vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
  int cpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
  struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  if (run == MAP_FAILED) err(1, "mmap of the vCPU");
  describe_machine(argv[2]);
  set_up_cpu(kvm, cpu, load(argv[1]));

  struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x30};
  setvbuf(stdout, NULL, _IONBF, 0);
  for (;;) {
    check(ioctl(cpu, KVM_RUN, 0), "KVM_RUN");
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    switch (run->exit_reason) {
      case KVM_EXIT_IO:
        if (run->io.direction == KVM_EXIT_IO_IN)
          memset(data, run->io.port == 0x3fd ? 0x60 : 0xff, run->io.size * run->io.count);
        else if (run->io.port == 0x3f8)
          putchar(*data);
        else if (run->io.port == 0x604)
          return 0;
        break;
      case KVM_EXIT_MMIO:
        if (run->mmio.is_write) break;
        uint32_t value = run->mmio.phys_addr - window < 4096 ? window_register(run->mmio.phys_addr - window) : ~0u;
        memcpy(run->mmio.data, &value, 4);
        if (interrupts && run->mmio.phys_addr == window) check(ioctl(vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI");
        break;
      default: errx(12, "exit reason %u", run->exit_reason);
    }
  }
}
