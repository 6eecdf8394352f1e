#include "spec/spec_dot.h"

#include "engine.h"

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

INLINE void int_dot(const int16_t *restrict code, int64_t ld_code, const int16_t *restrict min, int64_t ld_min,
                    const int16_t *restrict act, const int16_t *restrict sum16, int32_t *restrict dot,
                    int32_t *restrict min_dot, int block) {
    for (int r = 0; r < SPEC_DOT_ROWS; r++) {
        const int16_t *c = code + r * ld_code, *m = min + r * ld_min;
        int32_t a = 0, b = 0;
        for (int i = 0; i < block; i++)
            a += (int32_t)c[i] * (int32_t)act[i];
        for (int g = 0; g < block / 16; g++)
            b += (int32_t)m[g] * (int32_t)sum16[g];
        dot[r] = a;
        min_dot[r] = b;
    }
}

INLINE void f64_dot(const float *restrict w, const double *restrict x, int64_t n, double *restrict sum,
                    double *restrict sum_abs) {
    double s[8] = {0}, a[8] = {0};
    int64_t k = 0;
    for (; k + 8 <= n; k += 8)
        for (int l = 0; l < 8; l++) {
            double t = (double)w[k + l] * x[k + l];
            s[l] += t;
            a[l] += fabs(t);
        }
    for (; k < n; k++) {
        double t = (double)w[k] * x[k];
        s[0] += t;
        a[0] += fabs(t);
    }
    *sum = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    *sum_abs = ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
}

/* One instantiation of the three loops for a target. */
#define DOTS(suffix, attribute)                                                                                        \
    attribute static void int256_##suffix(const int16_t *c, int64_t ld_c, const int16_t *m, int64_t ld_m,              \
                                          const int16_t *x, const int16_t *s, int32_t *dot, int32_t *min_dot) {        \
        int_dot(c, ld_c, m, ld_m, x, s, dot, min_dot, 256);                                                            \
    }                                                                                                                  \
    attribute static void int32_##suffix(const int16_t *c, int64_t ld_c, const int16_t *m, int64_t ld_m,               \
                                         const int16_t *x, const int16_t *s, int32_t *dot, int32_t *min_dot) {         \
        int_dot(c, ld_c, m, ld_m, x, s, dot, min_dot, 32);                                                             \
    }                                                                                                                  \
    attribute static void f64_##suffix(const float *w, const double *x, int64_t n, double *sum, double *sum_abs) {     \
        f64_dot(w, x, n, sum, sum_abs);                                                                                \
    }

DOTS(plain, )
#if defined(__x86_64__)
DOTS(avx2, __attribute__((target("avx2"))))
DOTS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

struct spec_dots par_spec_dots(void) {
#if defined(__x86_64__)
    unsigned have = fwd_cpu_detect();
    if (have & FWD_CPU_AVX512)
        return (struct spec_dots){int256_avx512, int32_avx512, f64_avx512};
    if (have & FWD_CPU_AVX2)
        return (struct spec_dots){int256_avx2, int32_avx2, f64_avx2};
#endif
    return (struct spec_dots){int256_plain, int32_plain, f64_plain};
}
