/* engine/core/cpu.h: what this processor and operating system can run, as a mask the caller passes on.
 * A level is all-or-nothing: AVX2 means AVX2 + FMA + F16C + BMI2, AVX512 means F + BW + DQ + VL + VNNI on top. */
#ifndef ENGINE_CORE_CPU_H
#define ENGINE_CORE_CPU_H

#include "core/status.h"

#include <stddef.h>

enum fwd_cpu {
    FWD_CPU_NONE = 0,
    FWD_CPU_AVX2 = 1 << 0,
    FWD_CPU_AVX512 = 1 << 1 /* with VNNI */
};

/* Mask of enum fwd_cpu bits that CPUID and XCR0 both grant. */
unsigned fwd_cpu_detect(void);
/* "ref", "avx2", "avx512" (each includes the ones below it); NULL or "all" means everything detected.
 * The result is cut to `detected`: asking for more than the machine has is FWD_EUNAVAILABLE. */
enum fwd_status fwd_cpu_parse(const char *text, unsigned detected, unsigned *mask, struct fwd_error *err);
/* "avx2+avx512" and the like, into buf. */
const char *fwd_cpu_text(unsigned mask, char *buf, size_t n);
/* Cores this process may run on (affinity and cgroup aware as far as sched_getaffinity is), at least 1. */
int fwd_cpu_count(void);

#endif
