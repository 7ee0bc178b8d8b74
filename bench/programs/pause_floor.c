// What a checkpoint's pause can't be shorter than: a guest that writes N pages over and over is stopped, its dirty log and
// its state are fetched with the system calls that it takes, those pages are copied, and it goes on. No VMM around it. General and
// special registers KVM leaves as the guest stops.
//
// usage: pause_floor PAGES ROUNDS
// Prints one JSON object: microseconds from the wish to stop until the guest may run again.
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { ram_size = 64 << 20, code = 0x1000, first_page = 1 << 20, page = 4096 };

static int vm, cpu;
static struct kvm_run *run;
static sem_t stopped, go;
static volatile int wanted;

static int check(int result, const char *what) {
  if (result < 0) err(1, "%s", what);
  return result;
}

static void nothing(int signal) { (void)signal; }

static void *run_guest(void *unused) {
  (void)unused;
  while (1) {
    // Nothing that this guest does leads out of KVM_RUN, only the signal.
    if (ioctl(cpu, KVM_RUN, 0) == 0) errx(1, "exit reason %u", run->exit_reason);
    if (!wanted) continue;
    run->immediate_exit = 0;
    sem_post(&stopped);
    sem_wait(&go);
  }
  return NULL;
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

static int compare(const void *a, const void *b) { return *(const double *)a < *(const double *)b ? -1 : 1; }

int main(int argc, char **argv) {
  if (argc != 3) errx(64, "usage: pause_floor PAGES ROUNDS");
  int pages = atoi(argv[1]), rounds = atoi(argv[2]);
  int kvm = check(open("/dev/kvm", O_RDWR), "/dev/kvm");
  vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
  uint8_t *ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  struct kvm_userspace_memory_region slot = {.memory_size = ram_size, .userspace_addr = (uintptr_t)ram,
                                             .flags = KVM_MEM_LOG_DIRTY_PAGES};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
  check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
  struct kvm_pit_config pit = {0};
  check(ioctl(vm, KVM_CREATE_PIT2, &pit), "KVM_CREATE_PIT2");
  cpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
  run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
  // again: mov edi, first; mov ecx, pages; next: inc dword [edi]; add edi, 4096; dec ecx; jnz next; mov eax, 20000;
  // wait: dec eax; jnz wait; jmp again
  uint8_t program[] = {0xbf, 0, 0, 0, 0, 0xb9, 0, 0, 0, 0, 0xff, 0x07, 0x81, 0xc7, 0, 0x10, 0, 0, 0x49, 0x75, 0xf5,
                       0xb8, 0x20, 0x4e, 0, 0, 0x48, 0x75, 0xfd, 0xeb, 0xe1};
  memcpy(program + 1, &(uint32_t){first_page}, 4);
  memcpy(program + 6, &pages, 4);
  memcpy(ram + code, program, sizeof program);
  struct kvm_sregs sregs;
  check(ioctl(cpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
  struct kvm_segment flat = {.limit = 0xffffffff, .present = 1, .db = 1, .s = 1, .g = 1, .selector = 8, .type = 11};
  sregs.cs = flat;
  flat.type = 3, flat.selector = 16;
  sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = flat;
  sregs.cr0 |= 1;
  check(ioctl(cpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
  struct kvm_regs regs = {.rip = code, .rflags = 2};
  check(ioctl(cpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
  run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
  sem_init(&stopped, 0, 0);
  sem_init(&go, 0, 0);
  sigaction(SIGUSR1, &(struct sigaction){.sa_handler = nothing}, NULL);
  pthread_t thread;
  pthread_create(&thread, NULL, run_guest, NULL);

  static uint64_t bitmap[ram_size / page / 64];
  uint8_t *stage = malloc((size_t)ram_size);
  memset(stage, 1, (size_t)ram_size);
  double *times = calloc((size_t)rounds, sizeof *times);
  struct { struct kvm_msrs head; struct kvm_msr_entry entries[36]; } msrs = {.head.nmsrs = 36};
  for (int index = 0; index < 36; index++) msrs.entries[index].index = 0x10;  // one that every host has
  long copied = 0;
  for (int round = 0; round < rounds; round++) {
    usleep(100000);
    double start = now();
    wanted = 1;
    run->immediate_exit = 1;
    pthread_kill(thread, SIGUSR1);
    sem_wait(&stopped);
    struct kvm_clock_data clock;
    struct kvm_mp_state mp;
    struct kvm_xcrs xcrs;
    struct kvm_debugregs debug;
    struct kvm_lapic_state lapic;
    struct kvm_vcpu_events events;
    struct kvm_pit_state2 timer;
    struct kvm_xsave xsave;
    check(ioctl(vm, KVM_GET_CLOCK, &clock), "KVM_GET_CLOCK");
    check(ioctl(cpu, KVM_GET_MP_STATE, &mp), "KVM_GET_MP_STATE");
    regs = run->s.regs.regs, sregs = run->s.regs.sregs;
    check(ioctl(cpu, KVM_GET_XSAVE, &xsave), "KVM_GET_XSAVE");
    check(ioctl(cpu, KVM_GET_XCRS, &xcrs), "KVM_GET_XCRS");
    check(ioctl(cpu, KVM_GET_DEBUGREGS, &debug), "KVM_GET_DEBUGREGS");
    check(ioctl(cpu, KVM_GET_LAPIC, &lapic), "KVM_GET_LAPIC");
    check(ioctl(cpu, KVM_GET_MSRS, &msrs), "KVM_GET_MSRS");
    check(ioctl(cpu, KVM_GET_VCPU_EVENTS, &events), "KVM_GET_VCPU_EVENTS");
    check(ioctl(vm, KVM_GET_PIT2, &timer), "KVM_GET_PIT2");
    for (unsigned chip = 0; chip < 3; chip++)
      check(ioctl(vm, KVM_GET_IRQCHIP, &(struct kvm_irqchip){.chip_id = chip}), "KVM_GET_IRQCHIP");
    check(ioctl(vm, KVM_GET_DIRTY_LOG, &(struct kvm_dirty_log){.dirty_bitmap = bitmap}), "KVM_GET_DIRTY_LOG");
    copied = 0;
    for (unsigned word = 0; word < sizeof bitmap / sizeof *bitmap; word++)
      for (uint64_t bits = bitmap[word]; bits; bits &= bits - 1)
        memcpy(stage + page * copied++, ram + page * (word * 64ul + (unsigned)__builtin_ctzll(bits)), page);
    wanted = 0;
    times[round] = now() - start;
    sem_post(&go);
  }
  qsort(times, (size_t)rounds, sizeof *times, compare);
  printf("{\"p50\": %.1f, \"p99\": %.1f, \"max\": %.1f, \"pages\": %ld}\n", times[rounds / 2], times[rounds * 99 / 100],
         times[rounds - 1], copied);
  exit(0);
}
