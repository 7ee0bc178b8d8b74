// <linux/kvm.h> for Swift: what a C header says in ways Swift can't import (ioctl numbers, shifted flags, unions, memory
// shared with the kernel). Wrappers return the ioctl's result, or -errno.
#pragma once
#include <errno.h>
#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

// Newer than the oldest headers this builds with; what a kernel lacks, KVM_CHECK_EXTENSION says.
#ifndef KVM_CAP_DIRTY_LOG_RING_ACQ_REL
#define KVM_CAP_DIRTY_LOG_RING_ACQ_REL 223
#endif
#ifndef KVM_CAP_PMU_CAPABILITY
#define KVM_CAP_PMU_CAPABILITY 212
#define KVM_PMU_CAP_DISABLE (1 << 0)
#endif
#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif

#define REQUEST(name, number) KVMRequest_##name __attribute__((swift_name(#name))) = number

enum KVMRequest : unsigned long {
  // /dev/kvm
  REQUEST(getAPIVersion, KVM_GET_API_VERSION),
  REQUEST(createVM, KVM_CREATE_VM),
  REQUEST(checkExtension, KVM_CHECK_EXTENSION),
  REQUEST(getVCPUMmapSize, KVM_GET_VCPU_MMAP_SIZE),
  REQUEST(getMSRIndexList, KVM_GET_MSR_INDEX_LIST),
  REQUEST(getSupportedCPUID, KVM_GET_SUPPORTED_CPUID),
  // virtual machine
  REQUEST(createVCPU, KVM_CREATE_VCPU),
  REQUEST(enableCap, KVM_ENABLE_CAP),
  REQUEST(setUserMemoryRegion, KVM_SET_USER_MEMORY_REGION),
  REQUEST(setTSSAddress, KVM_SET_TSS_ADDR),
  REQUEST(setIdentityMapAddress, KVM_SET_IDENTITY_MAP_ADDR),
  REQUEST(createIRQChip, KVM_CREATE_IRQCHIP),
  REQUEST(getIRQChip, KVM_GET_IRQCHIP),
  REQUEST(setIRQChip, KVM_SET_IRQCHIP),
  REQUEST(createPIT2, KVM_CREATE_PIT2),
  REQUEST(getPIT2, KVM_GET_PIT2),
  REQUEST(setPIT2, KVM_SET_PIT2),
  REQUEST(irqfd, KVM_IRQFD),
  REQUEST(ioeventfd, KVM_IOEVENTFD),
  REQUEST(irqLine, KVM_IRQ_LINE),
  REQUEST(getClock, KVM_GET_CLOCK),
  REQUEST(setClock, KVM_SET_CLOCK),
  REQUEST(getDirtyLog, KVM_GET_DIRTY_LOG),
  REQUEST(setMSRFilter, KVM_X86_SET_MSR_FILTER),
  REQUEST(resetDirtyRings, KVM_RESET_DIRTY_RINGS),
  // virtual CPU
  REQUEST(run, KVM_RUN),
  REQUEST(getRegs, KVM_GET_REGS),
  REQUEST(setRegs, KVM_SET_REGS),
  REQUEST(getSregs, KVM_GET_SREGS),
  REQUEST(setSregs, KVM_SET_SREGS),
  REQUEST(getMSRs, KVM_GET_MSRS),
  REQUEST(setMSRs, KVM_SET_MSRS),
  REQUEST(getCPUID2, KVM_GET_CPUID2),
  REQUEST(setCPUID2, KVM_SET_CPUID2),
  REQUEST(getLAPIC, KVM_GET_LAPIC),
  REQUEST(setLAPIC, KVM_SET_LAPIC),
  REQUEST(getXSAVE, KVM_GET_XSAVE),
  REQUEST(getXSAVE2, KVM_GET_XSAVE2),
  REQUEST(setXSAVE, KVM_SET_XSAVE),
  REQUEST(getXCRs, KVM_GET_XCRS),
  REQUEST(setXCRs, KVM_SET_XCRS),
  REQUEST(getMPState, KVM_GET_MP_STATE),
  REQUEST(setMPState, KVM_SET_MP_STATE),
  REQUEST(getVCPUEvents, KVM_GET_VCPU_EVENTS),
  REQUEST(setVCPUEvents, KVM_SET_VCPU_EVENTS),
  REQUEST(getDebugRegs, KVM_GET_DEBUGREGS),
  REQUEST(setDebugRegs, KVM_SET_DEBUGREGS),
  REQUEST(translate, KVM_TRANSLATE),
  REQUEST(getTSCkHz, KVM_GET_TSC_KHZ),
  REQUEST(setTSCkHz, KVM_SET_TSC_KHZ),
  REQUEST(kvmclockCtrl, KVM_KVMCLOCK_CTRL),
  REQUEST(hasDeviceAttr, KVM_HAS_DEVICE_ATTR),
  REQUEST(getDeviceAttr, KVM_GET_DEVICE_ATTR),
  REQUEST(setDeviceAttr, KVM_SET_DEVICE_ATTR),
} __attribute__((enum_extensibility(open)));
#undef REQUEST

/// "KVM_RUN" and the like, for messages.
const char *ckvm_request_name(enum KVMRequest request);

/// ioctl with a number.
static inline int ckvm_ioctl(int fd, enum KVMRequest request, unsigned long argument) {
  int result = ioctl(fd, (unsigned long)request, argument);
  return result < 0 ? -errno : result;
}

/// ioctl with a pointer to a structure.
static inline int ckvm_ioctl_pointer(int fd, enum KVMRequest request, void *argument) {
  int result = ioctl(fd, (unsigned long)request, argument);
  return result < 0 ? -errno : result;
}

/// KVM_RUN: 0, or -errno (-EINTR after a kick).
static inline int ckvm_run(int vcpu) {
  return ioctl(vcpu, KVM_RUN, 0UL) < 0 ? -errno : 0;
}

/// Whether the host's processor has VMX or SVM: CPUID leaf 1, ECX bit 5, or leaf 0x80000001, ECX bit 2.
int ckvm_has_virtualization(void);

// --- flags that are enum-shifted or _BITUL in the kernel's header
static const uint32_t ckvm_ioeventfd_datamatch = KVM_IOEVENTFD_FLAG_DATAMATCH;
static const uint32_t ckvm_ioeventfd_deassign = KVM_IOEVENTFD_FLAG_DEASSIGN;

// --- the offset of a vCPU's time stamp counter (Documentation/virt/kvm/devices/vcpu.rst)
static inline int ckvm_tsc_offset(int vcpu, enum KVMRequest request, uint64_t *offset) {
  struct kvm_device_attr attribute = {
      .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uint64_t)(uintptr_t)offset};
  return ckvm_ioctl_pointer(vcpu, request, &attribute);
}

// --- kvm_run, shared with the kernel and with threads that kick
/// From any thread: KVM_RUN returns -EINTR at once while it is 1.
static inline void ckvm_set_immediate_exit(struct kvm_run *run, int on) {
  __atomic_store_n(&run->immediate_exit, (uint8_t)on, __ATOMIC_SEQ_CST);
}
// --- registers that KVM_RUN leaves in kvm_run as it returns (KVM_CAP_SYNC_REGS)
/// From any thread: each KVM_RUN that begins from now on leaves them as it returns. RFLAGS, whose bit 1 is always set, says whether one has.
static inline void ckvm_want_registers(struct kvm_run *run) {
  run->s.regs.regs.rflags = 0;
  __atomic_store_n(&run->kvm_valid_regs, (uint64_t)(KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS), __ATOMIC_RELEASE);
}
/// Before the registers change other than by a KVM_RUN that leaves them. A wish at the same time may be lost.
static inline void ckvm_forget_registers(struct kvm_run *run) {
  __atomic_store_n(&run->kvm_valid_regs, 0, __ATOMIC_RELEASE);
}
/// What the last KVM_RUN left, when its thread has parked since; NULL when it was not asked to.
static inline const struct kvm_sync_regs *ckvm_left_registers(const struct kvm_run *run) {
  return run->kvm_valid_regs != 0 && run->s.regs.regs.rflags & 2 ? &run->s.regs : NULL;
}

/// Start of the data of a port I/O exit, inside the `mapped` bytes at `run`; NULL when the kernel names a place outside.
static inline void *ckvm_io_data(struct kvm_run *run, size_t mapped) {
  uint64_t length = (uint64_t)run->io.size * run->io.count;
  if (run->io.data_offset > mapped || length > mapped - run->io.data_offset) return NULL;
  return (char *)run + run->io.data_offset;
}
/// The MMIO data of an exit, at most 8 bytes, as a little-endian number.
static inline uint64_t ckvm_mmio_value(const struct kvm_run *run) {
  uint64_t value;
  __builtin_memcpy(&value, run->mmio.data, 8);
  return value;
}
static inline void ckvm_set_mmio_value(struct kvm_run *run, uint64_t value) {
  __builtin_memcpy(run->mmio.data, &value, 8);
}
/// KVM_INTERNAL_ERROR_EMULATION: the instruction bytes the kernel gave, at most 15; 0 when none.
static inline unsigned ckvm_emulation_bytes(const struct kvm_run *run, uint8_t *bytes) {
  if (run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION || run->internal.ndata < 3) return 0;
  if (!(run->emulation_failure.flags & KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)) return 0;
  unsigned count = run->emulation_failure.insn_size;
  if (count > 15) count = 15;
  __builtin_memcpy(bytes, run->emulation_failure.insn_bytes, count);
  return count;
}

// --- the filter of model-specific registers; the structure holds pointers
/// The guest gets #GP from `count` registers from `first` on, at most 64; all others stay.
static inline int ckvm_deny_registers(int vm, uint32_t first, uint32_t count) {
  uint64_t none = 0;
  struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
  filter.ranges[0] = (struct kvm_msr_filter_range){
      .flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, .base = first, .nmsrs = count, .bitmap = (uint8_t *)&none};
  return ckvm_ioctl_pointer(vm, KVMRequest_setMSRFilter, &filter);
}

// --- the dirty bitmap; the structures hold a pointer in a union
/// `bitmap` is as long as slot `slot` has pages, rounded up to 64.
static inline int ckvm_get_dirty_log(int vm, uint32_t slot, void *bitmap) {
  struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = bitmap};
  return ckvm_ioctl_pointer(vm, KVMRequest_getDirtyLog, &log);
}

// --- the dirty ring, shared with the kernel (Documentation/virt/kvm/api.rst, KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
/// Where a vCPU descriptor maps its ring.
static const uint64_t ckvm_dirty_ring_offset = KVM_DIRTY_LOG_PAGE_OFFSET * 4096UL;
/// Takes entry `index` when the kernel has filled it: 1 and slot/offset, marked for the next reset; else 0.
static inline int ckvm_dirty_ring_take(struct kvm_dirty_gfn *ring, uint32_t index, uint32_t *slot, uint64_t *offset) {
  struct kvm_dirty_gfn *entry = &ring[index];
  // The flag is written last by the kernel and read first here.
  if (__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY) return 0;
  *slot = entry->slot;
  *offset = entry->offset;
  __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
  return 1;
}
