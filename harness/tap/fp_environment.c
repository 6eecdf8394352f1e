/* The rounding direction and flush-to-zero state that a run was made under, for the record. */
#include "tap/capture.h"

#include <fenv.h>
#include <stdio.h>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

const char *par_fp_environment(char *buf, size_t n) {
    int mode = fegetround();
    const char *round = mode == FE_TONEAREST    ? "nearest"
                        : mode == FE_UPWARD     ? "up"
                        : mode == FE_DOWNWARD   ? "down"
                        : mode == FE_TOWARDZERO ? "zero"
                                                : "unknown";
#if defined(__x86_64__)
    unsigned csr = _mm_getcsr();
    (void)snprintf(buf, n, "round=%s ftz=%u daz=%u", round, csr >> 15 & 1u, csr >> 6 & 1u);
#elif defined(__aarch64__)
    unsigned long fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    (void)snprintf(buf, n, "round=%s ftz=%lu daz=%lu", round, fpcr >> 24 & 1u, fpcr >> 24 & 1u);
#else
    (void)snprintf(buf, n, "round=%s ftz=unknown daz=unknown", round);
#endif
    return buf;
}
