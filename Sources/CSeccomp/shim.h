#pragma once
#include <seccomp.h>
// Macros that Swift does not import.
static const uint32_t mv_seccomp_allow = SCMP_ACT_ALLOW;
static const uint32_t mv_seccomp_trap = SCMP_ACT_TRAP;
static const uint32_t mv_seccomp_log = SCMP_ACT_LOG;
static const uint32_t mv_seccomp_eperm = SCMP_ACT_ERRNO(1);
