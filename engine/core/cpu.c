#define _GNU_SOURCE
#include "core/cpu.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>

unsigned fwd_cpu_detect(void) {
    unsigned mask = FWD_CPU_NONE;
#if defined(__x86_64__)
    /* gcc's runtime checks CPUID and, through XGETBV, that the system saves the registers. */
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
        __builtin_cpu_supports("f16c")) {
        mask |= FWD_CPU_AVX2;
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
            __builtin_cpu_supports("avx512vnni"))
            mask |= FWD_CPU_AVX512;
    }
#endif
    return mask;
}

enum fwd_status fwd_cpu_parse(const char *text, unsigned detected, unsigned *mask, struct fwd_error *err) {
    unsigned want;
    if (!text || !strcmp(text, "all"))
        want = detected;
    else if (!strcmp(text, "ref"))
        want = FWD_CPU_NONE;
    else if (!strcmp(text, "avx2"))
        want = FWD_CPU_AVX2;
    else if (!strcmp(text, "avx512"))
        want = FWD_CPU_AVX2 | FWD_CPU_AVX512;
    else
        FWD_FAIL(FWD_EINPUT, err, "caps: got \"%s\", expected all, ref, avx2 or avx512", text);
    if (want & ~detected) {
        char have[64];
        FWD_FAIL(FWD_EUNAVAILABLE, err, "caps: \"%s\" asked for, this machine has %s", text,
                 fwd_cpu_text(detected, have, sizeof have));
    }
    *mask = want;
    return FWD_OK;
}

const char *fwd_cpu_text(unsigned mask, char *buf, size_t n) {
    (void)snprintf(buf, n, "%s", mask & FWD_CPU_AVX512 ? "avx2+avx512" : mask & FWD_CPU_AVX2 ? "avx2" : "ref");
    return buf;
}

int fwd_cpu_count(void) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}
