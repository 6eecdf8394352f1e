/* engine/test/float_data.h: made activations of the kinds that float kernels go wrong on, and how results compare. */
#ifndef ENGINE_TEST_FLOAT_DATA_H
#define ENGINE_TEST_FLOAT_DATA_H

#include "core/memory.h"

#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t next_random(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

/* About normal: the sum of four uniforms, variance 1. */
static inline float next_normal(uint64_t *state) {
    double sum = 0.0;
    for (int i = 0; i < 4; i++)
        sum += next_random(state) * 0x1p-31 - 0.5;
    return (float)(sum * 1.7320508);
}

enum kind { NORMAL, OUTLIERS, MASSIVE_FIRST, EQUAL, DENORMAL, MIXED_SCALES, N_KINDS };

static inline void fill(float *x, int64_t n, enum kind kind, uint64_t seed) {
    uint64_t state = seed * 2654435761u + kind;
    for (int64_t i = 0; i < n; i++) {
        float v = next_normal(&state);
        uint32_t r = next_random(&state);
        switch (kind) {
        case OUTLIERS:
            v = r % 97 ? v : v * 300.0f;
            break;
        case MASSIVE_FIRST:
            v = i ? v : 3000.0f;
            break;
        case EQUAL:
            v = 0.3f;
            break;
        case DENORMAL:
            v *= 0x1p-130f;
            break;
        case MIXED_SCALES:
            v = ldexpf(v, (int)(r % 24) - 12);
            break;
        case NORMAL:
        case N_KINDS:
            break;
        }
        x[i] = v;
    }
}

/* Same bytes, or both NaN: the payload of a NaN is no result. */
static inline bool same_floats(const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof a[i]) != 0 && !(isnan(a[i]) && isnan(b[i])))
            return false;
    return true;
}

static inline float *new_floats(int64_t n) {
    float *p = fwd_alloc((size_t)n, sizeof *p);
    ck_assert_ptr_nonnull(p);
    return p;
}

#endif
