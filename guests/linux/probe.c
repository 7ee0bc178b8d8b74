// Which instructions that a guest kernel uses does this host's KVM run at CPL 0? Build and run: see `probe`.
//
// Each candidate is run once in a VM of its own making, in long mode at CPL 0, before a HLT. On hosts whose KVM interprets
// ring 0, an instruction that the emulator lacks ends in KVM_EXIT_INTERNAL_ERROR. Prints one line each: name, kind, finding.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum kind { FEATURE, NEEDED }; // clearable by clearcpuid= (or noxsave) / used by every kernel

static const struct {
    const char *name; // as in /proc/cpuinfo, for FEATURE
    enum kind kind;
    const char *code; // may use RSI: 64-byte aligned memory; RAX, RCX, RDX are 0
    int length;
} candidates[] = {
#define CODE(bytes) bytes, sizeof(bytes) - 1
    {"popcnt", FEATURE, CODE("\xf3\x48\x0f\xb8\xc0")},
    {"cx16", FEATURE, CODE("\xf0\x48\x0f\xc7\x0e")},
    {"rdrand", FEATURE, CODE("\x48\x0f\xc7\xf0")},
    {"rdseed", FEATURE, CODE("\x48\x0f\xc7\xf8")},
    {"rdpid", FEATURE, CODE("\xf3\x48\x0f\xc7\xf8")},
    {"rdtscp", FEATURE, CODE("\x0f\x01\xf9")},
    {"fsgsbase", FEATURE, CODE("\xf3\x48\x0f\xae\xc8")},
    {"invpcid", FEATURE, CODE("\x48\x31\xc0\x66\x0f\x38\x82\x06")},
    {"smap", FEATURE, CODE("\x0f\x01\xcb\x0f\x01\xca")},
    {"abm", FEATURE, CODE("\xf3\x48\x0f\xbd\xc0")},
    {"movbe", FEATURE, CODE("\x0f\x38\xf0\x06")},
    {"clflushopt", FEATURE, CODE("\x66\x0f\xae\x3e")},
    {"clwb", FEATURE, CODE("\x66\x0f\xae\x36")},
    {"3dnowprefetch", FEATURE, CODE("\x0f\x0d\x0e")},
    {"xsave", FEATURE, CODE("\x48\x0f\xae\x26\x48\x0f\xae\x2e")},
    {"xsaves", FEATURE, CODE("\x48\x0f\xc7\x2e\x48\x0f\xc7\x1e")},
    {"fxsave/fxrstor", NEEDED, CODE("\x48\x0f\xae\x06\x48\x0f\xae\x0e")},
    {"fninit", NEEDED, CODE("\xdb\xe3")},
    {"fwait", NEEDED, CODE("\x9b")},
    {"lfence", NEEDED, CODE("\x0f\xae\xe8")},
    {"clflush", NEEDED, CODE("\x0f\xae\x3e")},
    {"cmpxchg8b", NEEDED, CODE("\xf0\x0f\xc7\x0e")},
    {"rdtsc", NEEDED, CODE("\x0f\x31")},
    {"swapgs", NEEDED, CODE("\x0f\x01\xf8")},
    {"int3", NEEDED, CODE("\xcc")},
};

enum { MEMORY = 0x200000, PML4 = 0x1000, PDPT = 0x2000, PD = 0x6000, IDT = 0x3000, GDT = 0x4000, CODE_AT = 0x5000, HLT_AT = 0x5800, STACK = 0x8000, DATA = 0x10000 };

static int kvm;
static struct kvm_cpuid2 *cpuid;

// Runs `code`; the exit reason, or -1. `*seconds` gets the time KVM_RUN took.
static int run(const char *code, int length, uint64_t rcx, double *seconds) {
    int vm = ioctl(kvm, KVM_CREATE_VM, 0), reason = -1;
    uint8_t *memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY, .userspace_addr = (uint64_t)memory};
    if (vm < 0 || memory == MAP_FAILED) return -1;
    ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    size_t size = (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    struct kvm_run *state = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (vcpu < 0 || state == MAP_FAILED) return -1;
    ioctl(vcpu, KVM_SET_CPUID2, cpuid);

    // The memory mapped onto itself by one large page; int3 leads to a HLT by its gate.
    *(uint64_t *)(memory + PML4) = PDPT | 3;
    *(uint64_t *)(memory + PDPT) = PD | 3;
    *(uint64_t *)(memory + PD) = 0x83;
    *(uint64_t *)(memory + GDT + 8) = 0x00af9b000000ffff;
    *(uint64_t *)(memory + IDT + 3 * 16) = (uint64_t)HLT_AT | 8ul << 16 | 0x8eul << 40;
    memory[HLT_AT] = 0xf4;
    memcpy(memory + CODE_AT, code, (size_t)length);
    memory[CODE_AT + length] = 0xf4;
    *(uint32_t *)(memory + DATA + 24) = 0x1f80; // FXRSTOR and XRSTOR need a valid MXCSR

    struct kvm_sregs sregs;
    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
    sregs.cs = (struct kvm_segment){.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
    sregs.idt.base = IDT, sregs.idt.limit = 0xfff;
    sregs.gdt.base = GDT, sregs.gdt.limit = 0xf;
    sregs.cr0 = 0x80050033, sregs.cr3 = PML4, sregs.efer = 0xd00;
    sregs.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
    ioctl(vcpu, KVM_SET_SREGS, &sregs);
    static const int wanted[] = {16, 18, 21}; // FSGSBASE, OSXSAVE, SMAP, where this CPU has them
    for (int i = 0; i < 3; i++) {
        uint64_t before = sregs.cr4;
        sregs.cr4 |= 1ul << wanted[i];
        if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0) sregs.cr4 = before;
    }
    struct kvm_regs regs = {.rip = CODE_AT, .rsi = DATA, .rdi = 2 * DATA, .rcx = rcx, .rsp = STACK, .rflags = 2};
    ioctl(vcpu, KVM_SET_REGS, &regs);

    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    if (ioctl(vcpu, KVM_RUN, 0) == 0) reason = (int)state->exit_reason;
    clock_gettime(CLOCK_MONOTONIC, &b);
    *seconds = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
    munmap(state, size), munmap(memory, MEMORY);
    close(vcpu), close(vm);
    return reason;
}

int main(void) {
    double seconds;
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) return perror("/dev/kvm"), 1;
    cpuid = calloc(1, sizeof *cpuid + 256 * sizeof cpuid->entries[0]);
    cpuid->nent = 256;
    if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) < 0) return perror("KVM_GET_SUPPORTED_CPUID"), 1;
    for (size_t i = 0; i < sizeof candidates / sizeof *candidates; i++) {
        int reason = run(candidates[i].code, candidates[i].length, 0, &seconds);
        printf("%-15s %-8s %s\n", candidates[i].name, candidates[i].kind == FEATURE ? "feature" : "needed",
               reason == KVM_EXIT_HLT ? "works" : reason == KVM_EXIT_INTERNAL_ERROR ? "missing" : "faults");
    }
    // ERMS and FSRM make the kernel prefer rep stosb; interpreted, it costs a step a byte.
    double bytes, words;
    run("\xf3\xaa", 2, 65536, &bytes);
    run("\xf3\x48\xab", 3, 8192, &words);
    const char *speed = bytes > 4 * words && bytes > 1e-3 ? "slow" : "works";
    printf("%-15s %-8s %s\n%-15s %-8s %s\n", "erms", "feature", speed, "fsrm", "feature", speed);
    return 0;
}
